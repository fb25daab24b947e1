"""`mlx-qwen3 chat`: a conversation in the terminal. Ctrl-C ends an answer, Ctrl-D or /bye the program."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, MlxQwen3Error
from .interrupts import stop_wishes
from .line_input import ReadLine, line_reader, read_message
from .model_flags import (
    add_model_flags,
    add_sampling_flags,
    add_speculation_flags,
    add_thinking_flags,
    keep_cache,
    load_asked,
    make_session,
)
from .printing import AnswerPrinter, speed_lines


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the verb and its flags."""
    parser = subparsers.add_parser("chat", help="talk to a model", description=__doc__)
    parser.add_argument("--system-prompt", metavar="TEXT", help="what the model is told first")
    parser.add_argument("--prompt", "-p", metavar="TEXT", help="the first message")
    parser.add_argument("--no-history", action="store_true", help="do not keep what is typed for the next time")
    add_model_flags(parser)
    add_sampling_flags(parser)
    add_thinking_flags(parser)
    add_speculation_flags(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the conversation until it ends."""
    model, tokenizer = load_asked(args, tell=sys.stdin.isatty())
    chat = Conversation(make_session(args, model, tokenizer), args.thinking, args.verbose)
    if sys.stdin.isatty():
        print("Ask anything. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    if args.prompt is not None:
        chat.take(args.prompt)
    status = chat.loop(line_reader(not args.no_history))
    keep_cache(args, chat.session)
    return status


@dataclass
class Conversation:
    """A session with a person in front of it.

    thinking: how thoughts are shown; see `AnswerPrinter`.
    verbose: numbers after every answer.
    """

    session: Any
    thinking: str
    verbose: bool = False
    over: bool = field(default=False, init=False)
    failed: bool = field(default=False, init=False)

    def loop(self, read_line: ReadLine) -> int:
        """Takes messages until the input ends; the exit status: 1 when something piped in went wrong."""
        while not self.over:
            try:
                message = read_message(read_line)
            except EOFError:
                break
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                print("(Ctrl-D or /bye leaves)")
                continue
            except InputError as error:
                self._tell(error)
                self.over = not sys.stdin.isatty()
                continue
            self.take(message)
        return 1 if self.failed and not sys.stdin.isatty() else 0

    def take(self, message: str) -> None:
        """A command or something to say. What goes wrong is said in a line, and the conversation goes on."""
        word, rest = [*message.split(maxsplit=1), "", ""][:2]
        try:
            if word in COMMANDS:
                COMMANDS[word][1](self, rest.strip())
            elif word.startswith("/") and word[1:].isalpha():
                raise InputError(f"there is no command {word}; /help lists them")
            elif word:
                self.show(self.session.send, message)
        except MlxQwen3Error as error:
            self._tell(error)

    def _tell(self, error: MlxQwen3Error) -> None:
        self.failed = True
        print(f"{error}", file=sys.stderr)

    def show(self, turn: Callable[..., Any], *arguments: Any) -> None:
        """Prints an answer while it comes; Ctrl-C ends the answer."""
        printer = AnswerPrinter(self.thinking)
        with stop_wishes() as wish:
            parts = turn(*arguments, progress=wish.check)
            try:
                for part in parts:
                    printer.write(part.kind, part.text)
                    wish.check()
            except KeyboardInterrupt:
                pass
            finally:
                parts.close()
                printer.end()
        if self.verbose:
            self.print_stats("")

    # commands

    def set_system(self, text: str) -> None:
        """The system prompt, or none."""
        self.session.system = text or None
        print("The system prompt is set." if text else "There is no system prompt now.", file=sys.stderr)

    def retry(self, _: str) -> None:
        """Another answer."""
        self.show(self.session.retry)

    def undo(self, _: str) -> None:
        """One message back."""
        message = self.session.undo()
        print("There is nothing to take back." if message is None else f"Taken back: {message}", file=sys.stderr)

    def clear(self, _: str) -> None:
        """A new conversation."""
        self.session.clear()
        print("The conversation is forgotten.", file=sys.stderr)

    def save(self, path: str) -> None:
        """Into a file."""
        self.session.save(_named(path, "/save"))
        print(f"Saved to {path}.", file=sys.stderr)

    def load(self, path: str) -> None:
        """From a file."""
        self.session.load(_named(path, "/load"))
        print(f"Loaded {len(self.session.messages)} messages.", file=sys.stderr)

    def print_stats(self, _: str) -> None:
        """What the last answer cost."""
        stats = self.session.stats
        if stats is None:
            raise InputError("there is no answer yet")
        lines = speed_lines(stats.response, stats.reused_tokens)
        if stats.reasoning_tokens:
            lines.append(f"thoughts: {stats.reasoning_tokens} tokens")
        lines.append(f"cache: {len(self.session.cached_ids)} tokens, {stats.cache_bytes / 1e6:.1f} MB")
        lines.append(f"sampling: {self.session.sampling_for(self.session.thinking)}")
        print(*lines, sep="\n", file=sys.stderr)

    def think(self, message: str) -> None:
        """Thinking on, and the message if there is one."""
        self._switch(True, message)

    def no_think(self, message: str) -> None:
        """Thinking off, and the message if there is one."""
        self._switch(False, message)

    def _switch(self, thinking: bool, message: str) -> None:
        self.session.set_thinking(thinking)
        print(f"Thinking is {'on' if thinking else 'off'}.", file=sys.stderr)
        if message:
            self.show(self.session.send, message)

    def help(self, _: str) -> None:
        """The commands."""
        for word, (line, _command) in COMMANDS.items():
            print(f"{word:<12} {line}", file=sys.stderr)
        print('"""          begins and ends a message of several lines', file=sys.stderr)

    def leave(self, _: str) -> None:
        """The end."""
        self.over = True


def _named(path: str, command: str) -> str:
    if not path:
        raise InputError(f"{command} needs the name of a file")
    return path


COMMANDS: dict[str, tuple[str, Callable[[Conversation, str], None]]] = {
    "/system": ("TEXT: what the model is told first; nothing takes it away", Conversation.set_system),
    "/retry": ("another answer to the last message", Conversation.retry),
    "/undo": ("takes the last message and its answer back", Conversation.undo),
    "/clear": ("forgets the conversation", Conversation.clear),
    "/save": ("FILE: writes the conversation", Conversation.save),
    "/load": ("FILE: goes on with a saved conversation", Conversation.load),
    "/stats": ("speed, memory and cache of the last answer", Conversation.print_stats),
    "/think": ("[MESSAGE]: the model thinks before it answers", Conversation.think),
    "/no_think": ("[MESSAGE]: it answers at once", Conversation.no_think),
    "/help": ("this list", Conversation.help),
    "/bye": ("leaves", Conversation.leave),
}
"""Command → one line of help, and what it does."""
