"""SALMONN in ms-swift: what a stage trains, on your own clips, by its command line.

```
swift sft --external_plugins examples/ms_swift.py --model .venv/salmonn-smol --model_type salmonn --template salmonn \
    --dataset rows.jsonl --tuner_type full --freeze_parameters_ratio 1 \
    --trainable_parameters_regex "qformer|projector|ln_|lora_" --output_dir out
```

A line of `rows.jsonl`: `{"messages": [{"role": "user", "content": "<audio>What do you hear?"}, {"role": "assistant",
"content": "A duck quacks."}], "audios": ["clips/animal.opus"]}`. One turn a row; the clips stand in front of its
question.

Tried with ms-swift 4.6.0, which asks for transformers < 5.20 and peft < 0.21, on a CPU: connector and LoRA alone
change, and `salmonn` takes the checkpoints of `out`.
"""

from typing import Any

from peft.config import PeftConfigMixin
from swift.model import Model, ModelGroup, ModelLoader, ModelMeta, register_model
from swift.template import StdTemplateInputs, Template, TemplateMeta, register_template

from modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.data.collator import SalmonnCollator


class SalmonnLoader(ModelLoader):
    """Loads the classes of the installed package."""

    default_trust_remote_code = False

    def get_model(self, *args: Any, **kwargs: Any) -> Any:
        # ms-swift reads adapters into a class of its own, with options that a saved folder cannot hold
        PeftConfigMixin.from_pretrained = PeftConfigMixin.from_pretrained_origin
        self.auto_model_cls = SalmonnForConditionalGeneration
        return super().get_model(*args, **kwargs)


class SalmonnTemplate(Template):
    """Leaves prompts, labels and audio to the model's own processor."""

    def _encode(self, inputs: StdTemplateInputs) -> dict[str, Any]:
        question, answer = inputs.messages  # more turns than these are an error
        example = {
            "audio": list(inputs.audios),
            "instruction": question["content"].replace("<audio>", ""),
            "answer": answer["content"],
        }
        batch = SalmonnCollator(self.processor)([example])
        return {"input_ids": batch["input_ids"][0].tolist(), "labels": batch["labels"][0].tolist(), "example": example}

    def _data_collator(self, batch: list[dict[str, Any]], *, padding_to: int | None = None) -> dict[str, Any]:
        return SalmonnCollator(self.processor)([row["example"] for row in batch])


register_template(
    TemplateMeta("salmonn", prefix=[], prompt=["{{QUERY}}"], chat_sep=None, template_cls=SalmonnTemplate)
)
register_model(
    ModelMeta(
        "salmonn",
        [ModelGroup([Model()])],
        SalmonnLoader,
        template="salmonn",
        architectures=["SalmonnForConditionalGeneration"],
        is_multimodal=True,
    )
)
