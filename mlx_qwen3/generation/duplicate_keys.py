"""Keep the names of one JSON object apart, which a grammar cannot do where the names are free."""

from dataclasses import dataclass

from .tokenizer_tables import TokenTables


@dataclass(frozen=True)
class Frame:
    """An open object with the names that it has so far, or an open array, whose `names` is None."""

    names: frozenset[bytes] | None


@dataclass(frozen=True)
class Position:
    """Where in a compact JSON text a prefix ends.

    open: objects and arrays around it, the innermost last. string: the string that is open, without its first quote.
    is_name: whether a string that begins here, or that is open, is a name. escaped: after a backslash.
    repeated: whether an object got a name twice.
    """

    open: tuple[Frame, ...] = ()
    string: bytes | None = None
    is_name: bool = False
    escaped: bool = False
    repeated: bool = False

    def after(self, text: bytes) -> "Position":
        """Return the position after more bytes."""
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
        """Return the tokens that would give the innermost object a name twice, and some that are never needed."""
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
        """Return the tokens after which an open name would be one that the object has, but for its last quote."""
        if self.string is None or not self.is_name:
            return []
        rests = [name[len(self.string) :] for name in self.open[-1].names or () if name.startswith(self.string)]
        return [
            token for rest in rests if rest for token in tables.beginning_with(rest) if tables.tokens[token] == rest
        ]
