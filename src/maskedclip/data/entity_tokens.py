"""Entities in token ids, for any WordPiece or BPE tokenizer: on the device, without going back to letters.

A term is tokenised once in all its spellings; their token sequences make a trie.  A match begins where a word begins
and ends where one ends.  U texts, T tokens, V the vocabulary.
"""

import json
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from maskedclip.data.entities import EntityDictionary, spellings


class EntityTokens(nn.Module):
    """Finds a dictionary's terms in token ids.  Its tables are buffers: a resumed run has the words it began with."""

    def __init__(self, dictionary: EntityDictionary, tokenizer: Tokenizer) -> None:
        super().__init__()
        plain = Tokenizer.from_str(tokenizer.to_str())
        plain.no_padding()
        plain.no_truncation()
        sequences = _sequences(dictionary, plain)
        continues, stays_open = _word_pieces(plain)
        self.vocabulary = len(continues)
        self.longest = max((len(sequence) for sequence in sequences), default=0)
        edges, accepts = _trie(sequences, self.vocabulary)
        self.edge_keys = nn.Buffer(torch.tensor(sorted(edges), dtype=torch.int64))  # state x V + token
        self.edge_states = nn.Buffer(torch.tensor([edges[key] for key in sorted(edges)], dtype=torch.int64))
        self.accepts = nn.Buffer(torch.tensor(accepts))  # by state
        self.continues, self.stays_open = nn.Buffer(torch.tensor(continues)), nn.Buffer(torch.tensor(stays_open))

    def forward(self, ids: Tensor) -> Tensor:
        """Where the entities are: from the left, at each token the longest term, none overlap.

        Args:
            ids: int64 (U, T).

        Returns: place of the first token of the entity that a token belongs to, -1 outside, int64 (U, T).
        """
        texts, tokens = ids.shape
        if not self.longest or not texts:
            return torch.full_like(ids, -1)
        length = self._longest_at(ids)
        place = torch.arange(tokens, device=ids.device)
        # From each place to the next one to look at.  Those reached from place 0, in all numbers of jumps at once.
        jump = place + length.clamp(min=1)
        jump = torch.cat([jump, jump.new_full((texts, 1), tokens)], dim=1)  # the place after the last leads to itself
        seen = torch.zeros(texts, tokens + 1, dtype=torch.int64, device=ids.device)
        seen[:, 0] = 1
        for _ in range(tokens.bit_length()):
            seen = seen | torch.zeros_like(seen).scatter_reduce(1, jump, seen, "amax")
            jump = jump.gather(1, jump)
        starts = torch.where((seen[:, :-1] > 0) & (length > 0), place, -1)
        latest = starts.cummax(dim=1).values
        inside = (latest >= 0) & (place < latest + length.gather(1, latest.clamp(min=0)))
        return torch.where(inside, latest, -1)

    def _longest_at(self, ids: Tensor) -> Tensor:
        """Tokens of the longest term that begins at each token, 0 where none does, int64 (U, T)."""
        texts, tokens = ids.shape
        same_word = self.continues[ids[:, 1:]] & self.stays_open[ids[:, :-1]]
        edge = torch.ones(texts, 1, dtype=torch.bool, device=ids.device)
        border = torch.cat([edge, ~same_word, edge], dim=1)  # before each token, and after the last, (U, T + 1)
        state, alive = torch.zeros_like(ids), border[:, :-1].clone()
        length = torch.zeros_like(ids)
        place = torch.arange(tokens, device=ids.device)
        for depth in range(min(self.longest, tokens)):
            ahead = (place + depth).clamp(max=tokens - 1)
            key = state * self.vocabulary + ids[:, ahead]
            found = torch.searchsorted(self.edge_keys, key).clamp(max=len(self.edge_keys) - 1)
            alive = alive & (self.edge_keys[found] == key) & (place + depth < tokens)
            state = torch.where(alive, self.edge_states[found], 0)
            ends = alive & self.accepts[state] & border[:, ahead + 1]
            length = torch.where(ends, depth + 1, length)
        return length


def _sequences(dictionary: EntityDictionary, tokenizer: Tokenizer) -> set[tuple[int, ...]]:
    """Token ids of all terms as they may stand in a text: in any case, first or after a space."""
    unknown = json.loads(tokenizer.to_str())["model"].get("unk_token")
    unknown = None if unknown is None else tokenizer.token_to_id(unknown)
    written: dict[str, None] = {}
    for term in dictionary.terms:
        forms = [term, *spellings(term)]
        for form in [*forms, *(form.replace(" ", "-") for form in forms)]:
            written |= dict.fromkeys((form, form.capitalize(), form.title(), form.upper()))
    texts = [before + text for text in written for before in ("", " ")]
    encoded = (entry.ids for entry in tokenizer.encode_batch(texts, add_special_tokens=False))
    return {tuple(ids) for ids in encoded if ids and unknown not in ids}


def _word_pieces(tokenizer: Tokenizer) -> tuple[list[bool], list[bool]]:
    """For each token: whether it may continue a word, and whether a word may go on after it; both: it does."""
    described = json.loads(tokenizer.to_str())
    model = described["model"]
    special = {entry["id"] for entry in described.get("added_tokens", []) if entry.get("special")}
    prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values()) + 1
    continues, stays_open = [False] * size, [False] * size
    for piece, place in vocabulary.items():
        if place in special:
            continue
        if prefix:
            continues[place], stays_open[place] = piece.startswith(prefix), True
        elif suffix:
            continues[place], stays_open[place] = True, not piece.endswith(suffix)
        else:  # a mark (Ġ, ▁) before the first piece of a word
            continues[place] = piece[0] not in "Ġ▁" and piece[0].isalnum()
            stays_open[place] = piece[-1] not in "Ġ▁" and piece[-1].isalnum()
    return continues, stays_open


def _trie(sequences: Iterable[tuple[int, ...]], vocabulary: int) -> tuple[dict[int, int], list[bool]]:
    """Edges state x V + token -> state, from state 0, and the states at which a term is complete."""
    edges: dict[int, int] = {}
    accepts = [False]
    for sequence in sorted(sequences):
        state = 0
        for token in sequence:
            key = state * vocabulary + token
            if key not in edges:
                edges[key] = len(accepts)
                accepts.append(False)
            state = edges[key]
        accepts[state] = True
    return edges, accepts
