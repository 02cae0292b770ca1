"""salmonn-smol: the small model that this project trains and ships."""
