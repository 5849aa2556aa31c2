"""The tokenizer of a model with other tokens: made, and proved to be one and the same in every program.

What may go wrong in silence: a word that is decoded as another, one that an older token cuts up, an id that the model
has no row for, and a tokenizer that transformers builds otherwise than its tokenizer.json says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from megatron_cpt.checkpoint.convert import transformers_tokenizer
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.tokenizer.formats import json_object

_ALWAYS_STATED = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Fields that transformers fills with an id of the family's first tokenizer where config.json is silent."""
_OTHER_IDS = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "force_words_ids",
    "forced_decoder_ids",
    "sequence_bias",
)
"""Further fields of a generation config that hold ids."""
_CONFIGS = ("config.json", "generation_config.json")


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, which must be described by a tokenizer.json. Raises BadInput."""
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises Exception itself
        rule = f"is not a readable tokenizer ({error})."
        raise BadInput(Fault(str(folder / "tokenizer.json"), rule, "Save one with transformers first.")) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def add_tokens(old: Tokenizer, new_tokens: Sequence[str]) -> Tokenizer:
    """The tokenizer with further words, found whole wherever they stand.

    Raises BadInput for words that it has, and for those of words_faults.
    """
    known = old.get_vocab(with_added_tokens=True)
    faults, usable = [], []
    for place, token in enumerate(new_tokens):
        if token.encode(errors="replace").decode() != token:
            rule = "is not UTF-8 text."
            faults.append(Fault(f"new token {token!r}", rule, "Write it in UTF-8, which the terminal must use too."))
            continue
        ids = old.encode(token, add_special_tokens=False).ids
        is_one = len(ids) == 1 and old.decode(ids, skip_special_tokens=False) == token
        if is_one or token in new_tokens[:place]:
            rule = "the tokenizer has it already, or it is given twice."
            faults.append(Fault(f"new token {token!r}", rule, "Take it out."))
        elif token in known:
            rule = "the vocabulary has an entry of this name, though it stands for other text."
            faults.append(Fault(f"new token {token!r}", rule, "Take it out."))
        elif token:
            usable.append(token)
    if not new_tokens or not all(new_tokens):
        faults.append(Fault("new tokens", "there is none, or one is empty.", "Give words, or a tokenizer folder."))
    new: Tokenizer = Tokenizer.from_str(old.to_str())
    new.add_tokens([AddedToken(token, normalized=False) for token in usable])
    refuse([*faults, *words_faults(new, added_words(old, new))])
    return new


def added_words(old: Tokenizer, new: Tokenizer) -> dict[str, int]:
    """The words that were added to a tokenizer and that the old one does not have, with their ids.

    Control tokens are none of them, for no text is made of them; nor are entries of the model that are added besides.
    """
    known, in_model = old.get_vocab(with_added_tokens=True), new.get_vocab(with_added_tokens=False)
    added = {str(token.content): int(number) for number, token in new.get_added_tokens_decoder().items()
             if not token.special}  # fmt: skip
    return {word: number for word, number in added.items() if word not in known and word not in in_model}


def words_faults(tokenizer: Tokenizer, words: Mapping[str, int]) -> list[Fault]:
    """Of added words with their ids those that are not found whole, or that are decoded as other text.

    Byte-level's decoder in the tokenizers library reads letters such as é and ł in an added word as signs for bytes.
    """
    faults = []
    for word, number in words.items():
        ids = tokenizer.encode(word, add_special_tokens=False).ids
        faults += _word_faults(word, number, ids, tokenizer.decode(ids, skip_special_tokens=False))
    return faults


def _word_faults(word: str, number: int, ids: list[int], decoded: str) -> list[Fault]:
    """What is wrong with how a tokenizer reads and writes a new word.

    Args:
        number: its id.
        ids: what the word is encoded as.
        decoded: what those are decoded as.
    """
    if ids != [number]:
        rule = f"the tokenizer does not find it whole: it becomes {ids}, so that its row would never be read."
        return [Fault(f"new token {word!r}", rule, "Take it out.")]
    if decoded != word:
        rule = f"the tokenizer would decode it as {decoded!r}."
        remedy = (
            "Take it out: its old pieces are decoded rightly. Or train a tokenizer that has it in its own vocabulary "
            "(not as an added token), and give its folder with --tokenizer."
        )
        return [Fault(f"new token {word!r}", rule, remedy)]
    return []


def check_in_transformers(folder: Path, tokenizer: Tokenizer, words: Mapping[str, int], rows: int) -> None:
    """Refuses a folder whose tokenizer is another one in transformers, which builds it by rules of its own.

    Args:
        tokenizer: what the folder's tokenizer.json says.
        words: new words with their ids, which must come back from it whole.
        rows: of the embedding.
    Raises:
        BadInput: it cannot be loaded, gives tokens other ids or ids without a row, or decodes a word as another.
    """
    shown = "the new tokenizer in transformers"
    try:
        theirs = transformers_tokenizer(folder)
        found: dict[str, int] = theirs.get_vocab()
    except Exception as error:  # transformers raises several kinds for what it cannot read
        rule = f"it cannot be loaded ({type(error).__name__}: {error})."
        raise BadInput(Fault(shown, rule, "Save the tokenizer with transformers' save_pretrained first.")) from None
    named = "Name only tokens of tokenizer.json in tokenizer_config.json and special_tokens_map.json."
    faults = []
    beyond = sorted((number, token) for token, number in found.items() if number >= rows)
    if beyond:
        listed = ", ".join(f"{token!r} ({number})" for number, token in beyond[:5])
        rule = f"it adds {len(beyond)} tokens for which the model, of {rows} rows, has none: {listed}."
        faults.append(Fault(shown, rule, f"{named} Or save the tokenizer with save_pretrained, and give that folder."))
    ours = tokenizer.get_vocab(with_added_tokens=True)
    other = sorted(token for token, number in ours.items() if found.get(token) != number)
    if other:
        listed = ", ".join(f"{token!r} ({ours[token]}, there {found.get(token)})" for token in other[:5])
        faults.append(Fault(shown, f"{len(other)} tokens have other ids than in tokenizer.json: {listed}.", named))
    if not faults:
        for word, number in words.items():
            ids = list(theirs.encode(word, add_special_tokens=False))
            faults += _word_faults(word, number, ids, str(theirs.decode(ids, clean_up_tokenization_spaces=False)))
    refuse(faults)


def token_id_changes(
    hf_folder: Path, tokenizer_folder: Path, old: Tokenizer, new: Tokenizer
) -> dict[str, dict[str, Any]]:
    """The fields of config.json and generation_config.json that name tokens, by another tokenizer's ids.

    A role that the tokenizer's folder names is its token's (eos: and those further ones that the new tokenizer has,
    where the old field lists several); any other token is looked for by its name, and null where it is not there.
    """
    changes: dict[str, dict[str, Any]] = {}
    for name in _CONFIGS:
        fields = json_object(hf_folder / name)
        asked = [field for field in fields if field.endswith("_token_id")]
        if name == "config.json":
            asked = [*_ALWAYS_STATED, *(field for field in asked if field not in _ALWAYS_STATED)]
        changes[name] = {
            field: _renumbered(fields.get(field), _role_token(tokenizer_folder, field, new), old, new)
            for field in asked
        }
        # transformers trains no row for the pad, which may be the token that ends texts: a model without one gets none.
        pad = fields.get("pad_token_id")
        if "pad_token_id" in asked and not (isinstance(pad, int) and pad >= 0):
            changes[name]["pad_token_id"] = None
        # Lists of words by pieces that may not be there.
        changes[name] |= {field: None for field in _OTHER_IDS if field in fields}
    return changes


def _role_token(folder: Path, field: str, tokenizer: Tokenizer) -> int | None:
    """The id of the token that a tokenizer's folder gives the role of `eos_token_id` or another such field."""
    role = field.removesuffix("_id")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = json_object(folder / name).get(role)
        content = token.get("content") if isinstance(token, dict) else token
        number = tokenizer.token_to_id(content) if isinstance(content, str) else None
        if number is not None:
            return int(number)
    return None


def _renumbered(value: Any, named: int | None, old: Tokenizer, new: Tokenizer) -> int | list[int] | None:
    """A field's id or ids by another tokenizer; `named` is the token that has the role there, if one has it."""
    if not isinstance(value, list):
        return named if named is not None else _same_token(value, old, new)
    numbers = [named, *(_same_token(number, old, new) for number in value)]
    return list(dict.fromkeys(number for number in numbers if number is not None)) or None


def _same_token(number: Any, old: Tokenizer, new: Tokenizer) -> int | None:
    """The new id of an old token by its name."""
    token = old.id_to_token(number) if isinstance(number, int) and number >= 0 else None
    found = None if token is None else new.token_to_id(token)
    return None if found is None else int(found)


def check_token_ids(folder: Path, rows: int) -> None:
    """Refuses ids in config.json and generation_config.json that the model has no row for. Raises BadInput."""
    faults = []
    for name in _CONFIGS:
        for field, value in json_object(folder / name).items():
            if not field.endswith("_token_id"):
                continue
            beyond = [one for one in (value if isinstance(value, list) else [value]) if _is_beyond(one, rows)]
            if beyond:
                rule = f"the model has {rows} rows, and its tokenizer no such id."
                faults.append(Fault(f"{name}: {field} = {value}", rule, "Correct it in the folder that is read."))
    refuse(faults)


def _is_beyond(value: Any, rows: int) -> bool:
    """Whether an id has no row."""
    return isinstance(value, int) and value >= rows
