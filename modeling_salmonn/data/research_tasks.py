"""Instructions for the research code's names of tasks, so that its annotation files are read as they are."""

from collections.abc import Mapping


SAME_TASKS = {
    "audiocaption": "audio_caption",
    "audiocaption_v2": "audio_caption",
    "music_description": "music_caption",
    "speech_separation": "overlapped_speech",
    "speech_query": "spoken_query",
    "keywords": "keyword_extraction",
    "audio_story_telling": "story",
    "speech_audio_query": "co_reasoning",
    "speech_audio_coreasoning": "co_reasoning",
}
TRANSLATIONS = {
    "translation_ec": "Chinese",
    "translation_ce": "English",
    "translation_en2de": "German",
    "translation_en2ja": "Japanese",
}
QUESTIONS = ("QA", "inference_QA", "gender_QA")  # about speech, sounds and music alike: asked as they are


def with_research_tasks(prompts: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """A table of instructions that also knows the research code's names of its tasks.

    Rows keep the names that they have: a prompt file of the research code goes by them too, and its own entries win.

    Args:
        prompts: instructions of each task, from `load_prompts`.
    """
    same = {name: prompts[ours] for name, ours in SAME_TASKS.items() if ours in prompts}
    translations = {
        name: [text.replace("{language}", language) for text in prompts.get("translation", [])]
        for name, language in TRANSLATIONS.items()
        if "translation" in prompts
    }
    return same | translations | {name: ["{question}"] for name in QUESTIONS} | dict(prompts)


__all__ = ["with_research_tasks"]
