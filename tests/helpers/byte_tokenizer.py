"""A tokenizer that needs no training: one token per byte, so that every text can be written."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(chatml: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer.

    Args:
        chatml: end turns with `<|im_end|>` and add no BOS, as chat models do; otherwise as LLaMA does.
    """
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = {"unk_token": "<unk>", "eos_token": "<|im_end|>" if chatml else "</s>", "pad_token": "<unk>"}
    if not chatml:
        names["bos_token"] = "<s>"
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=["<|im_start|>", "<|im_end|>"], **names
    )
