"""Fine-tune a model on clips of your own with the plain Trainer: minutes on a CPU with salmonn-smol and a few clips.

    python examples/fine_tune.py .venv/salmonn-smol my_clips tuned

`my_clips` is an audio folder: clips, and a metadata.csv with the columns file_name, question and answer. Needs
`pip install ".[training]"`; `salmonn train` has mixtures of tasks, caching and several devices.
"""

import csv
import sys
from pathlib import Path

from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

from modeling_salmonn import AudioTextPipeline
from modeling_salmonn.data.collator import SalmonnCollator


source, folder, output = sys.argv[1:]
with open(Path(folder, "metadata.csv"), newline="") as file:
    rows = list(csv.DictReader(file))
examples = [
    {"audio": str(Path(folder, row["file_name"])), "instruction": row["question"], "answer": row["answer"]}
    for row in rows
]
processor = AutoProcessor.from_pretrained(source)
model = AutoModel.from_pretrained(source)
# the loaded adapter becomes trainable, or a fresh one is added; prepare_stage(model) trains the connector too
model.add_lora()

arguments = TrainingArguments(
    output,
    num_train_epochs=10,
    per_device_train_batch_size=4,
    learning_rate=5e-4,
    logging_steps=1,
    save_strategy="no",
    remove_unused_columns=False,
    report_to="none",
)
trainer = Trainer(model, arguments, data_collator=SalmonnCollator(processor), train_dataset=examples)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} at last")

model.save_pretrained(output)
processor.save_pretrained(output)
pipe = AudioTextPipeline(model=model.eval(), processor=processor)
print(pipe(examples[0]["audio"], text=examples[0]["instruction"])[0]["generated_text"])
