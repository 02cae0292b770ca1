"""`python -m modeling_salmonn` is the `salmonn` command; so is `accelerate launch -m modeling_salmonn`."""

from modeling_salmonn.commands.app import app


if __name__ == "__main__":
    app()
