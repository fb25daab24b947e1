"""Prevent duplicate names in JSON objects, which a grammar cannot do for names that are not listed in the schema."""

from dataclasses import dataclass

from .tokenizer_tables import TokenTables


@dataclass(frozen=True)
class Frame:
    """An open JSON object or array.

    Attributes:
        names: names that the object has so far; None for an array.
    """

    names: frozenset[bytes] | None


@dataclass(frozen=True)
class Position:
    """The position at the end of a prefix of compact JSON text.

    Attributes:
        open: enclosing objects and arrays, the innermost last.
        string: content so far of the open string, None outside of strings.
        is_name: whether the open string, or a string that begins here, is a name.
        escaped: whether the last character is an escaping backslash.
        repeated: whether an object has a duplicate name.
    """

    open: tuple[Frame, ...] = ()
    string: bytes | None = None
    is_name: bool = False
    escaped: bool = False
    repeated: bool = False

    def after(self, text: bytes) -> "Position":
        """Return the position after further bytes of JSON text."""
        frames, string, is_name, escaped = self.open, self.string, self.is_name, self.escaped
        repeated = self.repeated
        for code in text:
            if string is not None:
                if escaped or code != 0x22:
                    escaped = not escaped and code == 0x5C
                    string += bytes((code,))
                    continue
                if is_name:
                    names = frames[-1].names
                    assert names is not None
                    repeated = repeated or string in names
                    frames = (*frames[:-1], Frame(names | {string}))
                    is_name = False
                string = None
            elif code == 0x22:
                string = b""
            elif code in b"{[":
                frames = (*frames, Frame(frozenset() if code == 0x7B else None))
                is_name = code == 0x7B
            elif code in b"}]":
                frames, is_name = frames[:-1], False
            elif code == 0x2C and frames:
                is_name = frames[-1].names is not None
        return Position(frames, string, is_name, escaped, repeated)

    def repeats(self, tables: TokenTables) -> list[int]:
        """Return tokens that would give the innermost object a duplicate name.

        Tokens that contain a whole string are always among them: they might hide a duplicate and are never needed.
        """
        if not any(frame.names for frame in self.open):
            return []
        banned = list(tables.whole_strings)
        if self.string is None or not self.is_name:
            return banned
        for name in self.open[-1].names or ():
            if name.startswith(self.string):
                banned += tables.beginning_with(name[len(self.string) :] + b'"')
        return banned

    def completing(self, tables: TokenTables) -> list[int]:
        """Return tokens after which the open name would equal a name of the object, except for the closing quote."""
        if self.string is None or not self.is_name:
            return []
        rests = [name[len(self.string) :] for name in self.open[-1].names or () if name.startswith(self.string)]
        return [
            token for rest in rests if rest for token in tables.beginning_with(rest) if tables.tokens[token] == rest
        ]
