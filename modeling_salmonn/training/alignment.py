"""Alignment warm start: puts audio tokens into the language model's input space before that model is ever run.

A fresh connector gives tokens that mean nothing to the language model, and the language-model loss takes days to move
them. Here they are trained against the input embeddings themselves:

- speech: CTC over a blank, the transcript's tokens and random others, with logits = scale * token . embedding
- sounds and music: the mean of a clip's tokens must match the content words of its caption (a bag of words): what
  makes an instrument or a machine is spread over all windows

Only the connector is run, on cached encoder states, so an epoch takes minutes on a CPU.
"""

import random

import torch
from torch import nn

from modeling_salmonn.data.alignment_labels import count_targets
from modeling_salmonn.data.word_pieces import WordPieces
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.audio_segments_salmonn import MEL_FRAMES_PER_ENCODER_FRAME
from modeling_salmonn.processing.processing_salmonn import IGNORED_LABEL


BLANKED_SHARE = 0.02  # of the frames, each of which blanks a stretch


class AlignmentHead(nn.Module):
    """Loss of audio tokens against the frozen input embeddings `(vocabulary, hidden)` of a language model.

    Only their size and scale are used here. With `pieces`, which the words are spelled in, these compete beside the
    batch's own tokens, and are all that is read; otherwise `negatives` random tokens compete, and all may be read.
    """

    vocabulary: torch.Tensor | None

    def __init__(self, embedding: torch.Tensor, negatives: int = 1500, pieces: WordPieces | None = None):
        super().__init__()
        self.negatives = negatives
        self.pieces = pieces
        ids = None if pieces is None else torch.tensor(sorted(pieces.scores))
        self.register_buffer("vocabulary", ids, persistent=False)
        self.blank = nn.Parameter(torch.zeros(embedding.shape[1]))
        # a token that equals its embedding starts with a logit of about 10
        self.log_scale = nn.Parameter((10 / embedding.detach().float().pow(2).sum(-1).mean()).log())

    def logits(self, audio_tokens: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Scores `(tokens, 1 + vocabulary)`: blank first, then the rows of `embedding`."""
        table = torch.cat([self.blank[None], embedding.detach().to(self.blank.dtype)])
        return self.log_scale.exp() * (audio_tokens.to(table.dtype) @ table.T)

    def forward(
        self,
        audio_tokens: torch.Tensor,
        token_counts: torch.Tensor,
        alignment_labels: torch.Tensor,
        bag_labels: torch.Tensor,
        embedding: torch.Tensor,
        num_targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean loss per target token; zero where the batch has no target.

        Args:
            audio_tokens (`torch.Tensor` of shape `(audio_tokens, hidden)`): of all clips one after the other.
            token_counts (`torch.Tensor` of shape `(clips,)`): how many belong to each clip.
            alignment_labels, bag_labels (`torch.Tensor` of shape `(clips, length)`): see `alignment_labels()`.
            embedding (`torch.Tensor` of shape `(vocabulary, hidden)`): input embeddings of the language model.
            num_targets (`torch.Tensor`, *optional*): target tokens of the step that this batch is a part of; those of
                the batch if not given.
        """
        vocabulary = self._sample_vocabulary(len(embedding), alignment_labels, bag_labels)
        table = embedding[vocabulary]
        spoken = self._ctc(audio_tokens, token_counts, _positions(alignment_labels, vocabulary), table)
        means = self.logits(_mean_tokens(audio_tokens, token_counts), table).float()
        described = _bag_of_words(means, _positions(bag_labels, vocabulary))
        targets = count_targets(alignment_labels, bag_labels) if num_targets is None else num_targets
        return (spoken + described) / targets.clamp(min=1)

    @torch.no_grad()
    def greedy(
        self, audio_tokens: torch.Tensor, token_counts: torch.Tensor, embedding: torch.Tensor
    ) -> list[list[int]]:
        """Token ids that each clip reads as: the best of all that are read, repeats and blanks removed."""
        ids = torch.arange(len(embedding), device=embedding.device) if self.vocabulary is None else self.vocabulary
        table = embedding[ids]
        # In parts, since the logits of a whole evaluation over the whole vocabulary would not fit into memory.
        best = torch.cat([self.logits(part, table).argmax(-1) for part in audio_tokens.split(1024)])
        read = []
        for own in best.split(token_counts.tolist()):
            spelled = own.unique_consecutive()
            read.append(ids[spelled[spelled > 0] - 1].tolist())  # class 0 is the blank
        return read

    def _sample_vocabulary(self, size: int, *labels: torch.Tensor) -> torch.Tensor:
        """Sorted ids: all targets of the batch and others."""
        own = torch.cat([label[label != IGNORED_LABEL] for label in labels])
        others = self.vocabulary
        if others is None:
            others = torch.randint(size, (self.negatives,), device=own.device)
        return torch.cat([own, others]).unique()

    def _ctc(
        self, audio_tokens: torch.Tensor, counts: torch.Tensor, labels: torch.Tensor, table: torch.Tensor
    ) -> torch.Tensor:
        """Surprise of the words of all clips with speech; the tokens of others are not even scored."""
        lengths = (labels != IGNORED_LABEL).sum(-1)
        speech = lengths > 0
        if not speech.any():
            return audio_tokens.sum() * 0  # keeps the graph: gradients of zero
        tokens = audio_tokens[speech.repeat_interleave(counts)]
        labels, counts, lengths = labels[speech], counts[speech], lengths[speech]
        log_probs = self.logits(tokens, table).float().log_softmax(-1)  # (tokens, 1 + vocabulary)
        within = torch.arange(int(counts.max()), device=tokens.device) < counts[:, None]  # (clips, longest)
        clips = log_probs.new_zeros(*within.shape, log_probs.shape[-1])  # (clips, longest, 1 + vocabulary)
        clips[within] = log_probs  # one copy, where pad_sequence makes one for each clip on the way back
        return nn.functional.ctc_loss(
            clips.transpose(0, 1),  # time comes first
            labels.clamp(min=0),
            counts,
            lengths,
            reduction="sum",
            zero_infinity=True,  # speech too fast for its windows
        )


def _positions(labels: torch.Tensor, vocabulary: torch.Tensor) -> torch.Tensor:
    """Token ids as classes of a sampled vocabulary, of which 0 is the blank."""
    positions = torch.searchsorted(vocabulary, labels.clamp(min=0)) + 1  # the vocabulary is sorted
    return positions.where(labels != IGNORED_LABEL, IGNORED_LABEL)


def _mean_tokens(audio_tokens: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mean of each clip's tokens `(clips, hidden)`."""
    clips = torch.arange(len(counts), device=audio_tokens.device).repeat_interleave(counts)
    tokens = audio_tokens.float()
    sums = tokens.new_zeros(len(counts), tokens.shape[1]).index_add(0, clips, tokens)
    return sums / counts[:, None]


def _bag_of_words(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Surprise of each word given the clip's logits `(clips, 1 + vocabulary)`, summed; the blank does not compete."""
    surprise = -logits[:, 1:].log_softmax(-1).gather(1, (labels - 1).clamp(min=0))
    return surprise[labels != IGNORED_LABEL].sum()


class ConnectorAligner(nn.Module):
    """The connector and the alignment head, as a model that `Trainer` can train and save on its own.

    Q-Former, LayerNorms and projection of the model are trained in place; nothing else of it is run.
    """

    def __init__(self, model: SalmonnForConditionalGeneration, head: AlignmentHead, mask_frames: int = 4):
        super().__init__()
        base = model.model
        self.connector = nn.ModuleDict(
            {"ln_speech": base.ln_speech, "qformer": base.qformer, "projector": base.projector}
        )
        if base.audio_encoder is not None:
            self.connector["ln_audio"] = base.ln_audio
        self.head = head
        self.mask_frames = mask_frames  # longest stretch of encoder frames that is blanked in training
        self._base = [base]  # a list, so that its other parts are not this module's

    def forward(
        self,
        encoder_hidden_states: torch.Tensor,
        input_features_mask: torch.Tensor,
        alignment_labels: torch.Tensor,
        bag_labels: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The alignment loss of cached clips, and with it their audio tokens."""
        states, mask = encoder_hidden_states, input_features_mask
        if self.training:
            states, mask = self._augment(states, mask)
        audio = self._base[0].get_audio_features(encoder_hidden_states=states, input_features_mask=mask)
        embedding = self._base[0].get_input_embeddings().weight
        loss = self.head(audio.pooler_output, audio.token_counts, alignment_labels, bag_labels, embedding)
        return {"loss": loss, "audio_tokens": audio.pooler_output, "token_counts": audio.token_counts}

    def read(self, audio_tokens: torch.Tensor, token_counts: torch.Tensor) -> list[list[int]]:
        """Token ids that each clip reads as; see `AlignmentHead.greedy`."""
        return self.head.greedy(audio_tokens, token_counts, self._base[0].get_input_embeddings().weight)

    def _augment(self, states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shift the windows by a few frames and blank short stretches."""
        shift = random.randrange(self._base[0].audio_layout.stride_frames)
        states, mask = states[:, shift:], mask[:, MEL_FRAMES_PER_ENCODER_FRAME * shift :]
        if self.mask_frames:
            blanked = torch.rand(states.shape[:2], device=states.device) < BLANKED_SHARE
            width = random.randint(1, self.mask_frames)
            # Each frame that was drawn spreads over its neighbours; an even width adds one at the end.
            spread = nn.functional.max_pool1d(blanked.float()[:, None], width, 1, width // 2)[:, 0] > 0
            states = states.masked_fill(spread[:, : states.shape[1], None], 0)
        return states, mask
