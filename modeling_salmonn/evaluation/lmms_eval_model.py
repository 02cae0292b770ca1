"""SALMONN as a model of lmms-eval, which has tasks such as LibriSpeech, AIR-Bench, MMAU and VoiceBench.

```
lmms-eval eval --model salmonn --model_args pretrained=MODEL --tasks librispeech_test_clean --batch_size 8
```

lmms-eval finds `manifest` by the entry point `lmms_eval.models`; nothing else imports this module.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.pipeline_salmonn import DEFAULT_NEW_TOKENS, AudioTextPipeline
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor


MODEL_NAME = "salmonn"
SAMPLING_OPTIONS = ("temperature", "top_p", "top_k")


def manifest() -> ModelManifest:
    """What lmms-eval reads to find the model."""
    return ModelManifest(MODEL_NAME, simple_class_path=f"{__name__}.{SalmonnLmms.__name__}")


class SalmonnLmms(lmms):
    """Answers the requests of lmms-eval; on several devices each process has a model and a share of the requests.

    Args:
        pretrained: folder or Hub id; code that comes with it is not run.
        batch_size: clips answered at once.
        device: such as `cuda:1`; the process's own if not given.
        dtype: type of the weights: `auto` (as saved), `float32`, `bfloat16` or `float16`.
        lora_scale: LoRA scaling instead of the trained one.
        max_batch_size: of lmms-eval's search for the largest one, which is not needed here.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        lora_scale: float | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.batch_size = int(batch_size)
        self.lora_scale = lora_scale
        self.pipe = AudioTextPipeline(
            model=SalmonnForConditionalGeneration.from_pretrained(pretrained, dtype=dtype),
            processor=SalmonnProcessor.from_pretrained(pretrained, trust_remote_code=False),
            device=device or self.accelerator.device,
        )
        self.device = self.pipe.device  # where lmms-eval gathers the counts of several processes

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the order of the requests; those with the same options are batched."""
        by_options = defaultdict(list)
        for index, request in enumerate(requests):
            by_options[json.dumps(request.args[1], sort_keys=True)].append(index)
        answers = [""] * len(requests)
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc="Answers")
        for key, indices in by_options.items():
            given = json.loads(key)
            options = generation_options(given)
            if self.lora_scale is not None:
                options["lora_scale"] = self.lora_scale
            asked = self.items([requests[index] for index in indices])
            answered = self.pipe(asked, batch_size=self.batch_size, **options)
            for index, answer in zip(indices, answered, strict=True):
                answers[index] = cut_at(answer[0]["generated_text"], given.get("until") or ())
                progress.update()
        progress.close()
        return answers

    def items(self, requests: Sequence[Instance]) -> Iterator[dict[str, Any]]:
        """What the pipeline is asked; each clip is read when its turn comes."""
        for request in requests:
            instruction, _, clips_of, number, task, split = request.args
            yield {"audio": clips_of(self.task_dict[task][split][number]), "text": instruction}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: no task with audio asks for it.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("SALMONN answers in lmms-eval, but does not rate answers; choose another task.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: no task with audio asks for it.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("SALMONN answers one turn in lmms-eval; choose a task without several rounds.")


def generation_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `generate` for those of a task, in which a temperature of 0 stands for greedy decoding."""
    sample = bool(given.get("do_sample", (given.get("temperature") or 0) > 0))
    options = {
        "max_new_tokens": given.get("max_new_tokens") or DEFAULT_NEW_TOKENS,
        "num_beams": given.get("num_beams") or 1,
        "do_sample": sample,
    }
    if sample:
        options |= {name: given[name] for name in SAMPLING_OPTIONS if given.get(name) is not None}
    return options


def cut_at(answer: str, ends: str | Sequence[str]) -> str:
    """An answer up to the first of some strings that end it."""
    for end in [ends] if isinstance(ends, str) else ends:
        answer = answer.partition(end)[0] if end else answer
    return answer.strip()
