"""`mlx-qwen3 chat`: a conversation in the terminal. Ctrl-C ends an answer, Ctrl-D or /bye the program."""

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..chat.modes import ThinkingSupport
from ..errors import InputError, MlxQwen3Error
from .constraint_flags import add_constraint_flags, add_tool_flags
from .interrupts import defer_interrupts
from .line_input import ReadLine, Typed, line_reader, read_message
from .model_flags import (
    add_model_flags,
    add_sampling_flags,
    add_speculation_flags,
    add_thinking_flags,
    keep_cache,
    load_asked,
    make_session,
)
from .printing import answer_printer, part_text, quiet_terminal, speed_lines
from .ranks import current_group, is_first_process
from .standard_streams import ClosedInput

logger = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("chat", help="talk to a model", description=__doc__)
    parser.add_argument("--system-prompt", metavar="TEXT", help="system prompt")
    parser.add_argument("message", nargs="?", metavar="MESSAGE", help="the first message, in quotes")
    parser.add_argument("--prompt", "-p", metavar="TEXT", help="the same as MESSAGE")
    parser.add_argument("--plain", action="store_true", help="print answers as they are, without rendering Markdown")
    parser.add_argument("--no-history", action="store_true", help="do not keep what is typed for the next time")
    add_model_flags(parser)
    add_sampling_flags(parser)
    add_thinking_flags(parser)
    add_speculation_flags(parser)
    add_constraint_flags(parser)
    add_tool_flags(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the conversation until it ends."""
    if args.message is not None and args.prompt is not None:
        raise InputError("MESSAGE and --prompt are given. Give one of them")
    first = args.message if args.message is not None else args.prompt
    closed = isinstance(sys.stdin, ClosedInput)
    if closed and first is None:
        sys.stdin.readline()  # raises InputError, before a model is loaded for nothing
    model, tokenizer = load_asked(args, tell=sys.stdin.isatty())
    session = make_session(args, model, tokenizer)
    session.model_name = args.model or "the bundled model"
    chat = Conversation(session, args.thinking, args.verbose, args.plain, partial(_other_session, args))
    if sys.stdin.isatty():
        print("Ask anything. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    if first is not None:
        chat.take(Typed(first))
    status = chat.loop(_read_nothing if closed else line_reader(not args.no_history, tuple(COMMANDS)))
    if chat.session is session:  # the cache of another model is of no use to the next run
        keep_cache(args, session)
    return status


def _read_nothing(prompt: str) -> str:
    raise EOFError


def _other_session(args: argparse.Namespace, name: str) -> Any:
    """Return a session with another model and the same flags, without what belongs to the first model."""
    own = {"adapter": None, "revision": None, "gguf_file": None, "prompt_cache_file": None}
    args = argparse.Namespace(**{**vars(args), **own, "model": name})
    model, tokenizer = load_asked(args, tell=True)
    session = make_session(args, model, tokenizer)
    session.model_name = name
    return session


@dataclass
class Conversation:
    """A session with a person in front of it.

    thinking: how thinking is shown; see `AnswerPrinter`.
    verbose: whether numbers follow every answer.
    plain: whether answers are printed as they are, without Markdown.
    open_model: returns a session with the model of that name.
    """

    session: Any
    thinking: str
    verbose: bool = False
    plain: bool = False
    open_model: Callable[[str], Any] | None = None
    over: bool = field(default=False, init=False)
    failed: bool = field(default=False, init=False)

    def loop(self, read_line: ReadLine) -> int:
        """Take messages until the input ends; the exit status: 1 when something piped in went wrong."""
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
            try:
                self.take(message)
            except KeyboardInterrupt:  # between two pieces of an answer, or the second one
                if not sys.stdin.isatty():
                    raise
        return 1 if self.failed and not sys.stdin.isatty() else 0

    def take(self, message: str) -> None:
        """Run a command or send a message. What goes wrong is reported in one line, and the conversation goes on."""
        word, rest = [*message.split(maxsplit=1), "", ""][:2]
        if message[:1].isspace() and word:  # a space before a slash: no command
            word = "message"
        try:
            if word in COMMANDS and "\n" not in message.strip():
                self._run(word, rest.strip())
            elif word:
                _refuse_misspelt(word, rest, message)
                self.show(self.session.send, message)
        except MlxQwen3Error as error:
            self._tell(error)

    def _run(self, word: str, rest: str) -> None:
        try:
            COMMANDS[word][1](self, rest)
        except (MlxQwen3Error, KeyboardInterrupt):
            raise
        except Exception as error:  # a command that fails must not take the conversation with it
            logger.debug("%s failed", word, exc_info=True)
            self._tell(InputError(f"{word} failed: {type(error).__name__}: {' '.join(str(error).split())}"))

    def _tell(self, error: Exception) -> None:
        self.failed = True
        print(f"{error}", file=sys.stderr)

    def show(self, turn: Callable[..., Any], *arguments: Any) -> None:
        """Print an answer while it comes; Ctrl-C ends the answer."""
        printer = answer_printer(self.thinking, self.plain)
        with defer_interrupts() as interrupt, quiet_terminal():
            parts = turn(*arguments, progress=interrupt.check)
            try:
                for part in parts:
                    printer.write(part.kind, part_text(part))
                    interrupt.check()
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
        """Write the conversation into a file, after asking where one is there."""
        path = _named(path, "/save")
        if os.path.exists(os.path.expanduser(path)) and sys.stdin.isatty():
            print(f"{path} exists. Overwrite it? [y/N] ", end="", file=sys.stderr, flush=True)
            if not sys.stdin.readline().strip().lower().startswith("y"):
                print("Not saved.", file=sys.stderr)
                return
        if is_first_process():
            self.session.save(path)
        print(f"Saved {len(self.session.messages)} messages to {path}.", file=sys.stderr)

    def load(self, path: str) -> None:
        """Go on with a saved conversation, and show how it ended."""
        from ..distributed import same_outcome

        with same_outcome(current_group()):
            saved_with = self.session.load(_named(path, "/load"))
        print(f"Loaded {len(self.session.messages)} messages.", file=sys.stderr)
        if saved_with not in (None, self.session.model_name):
            print(f"They were written with {saved_with}, this is {self.session.model_name}.", file=sys.stderr)
        for message in self.session.messages[-2:]:
            text = " ".join(str(message["content"]).split())
            print(f"{message['role']}: {text if len(text) < 200 else text[:200] + '…'}", file=sys.stderr)

    def change_model(self, name: str) -> None:
        """Continue the conversation with another model, or print the name of this one."""
        if not name:
            print(f"This is {self.session.model_name}.", file=sys.stderr)
            return
        if self.open_model is None:
            raise InputError("the model of this conversation cannot be changed. Start another chat with --model")
        before, session = self.session, self.open_model(_named(name, "/model"))
        session.system, session.messages, session.sampling = before.system, before.messages, before.sampling
        if before.support is session.support is ThinkingSupport.OPTIONAL:
            session.set_thinking(before.thinking)
        self.session = session
        print(f"The conversation continues with {session.model_name}.", file=sys.stderr)

    def print_stats(self, _: str) -> None:
        """What the last answer cost."""
        stats = self.session.stats
        if stats is None:
            raise InputError("there is no answer yet")
        lines = speed_lines(stats.response, stats.reused_tokens)
        if stats.reasoning_tokens:
            lines.append(f"thinking: {stats.reasoning_tokens} tokens")
        lines.append(f"cache: {len(self.session.cached_ids)} tokens, {stats.cache_bytes / 1e6:.1f} MB")
        lines.append(f"sampling: {stats.sampling}")
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
            if line:
                print(f"{word:<12} {line}", file=sys.stderr)
        print('"""          begins and ends a message of several lines', file=sys.stderr)

    def leave(self, _: str) -> None:
        """The end."""
        self.over = True


def _named(path: str, command: str) -> str:
    """Return the name of a file as it was typed, without quotes around it."""
    path = path.strip()
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        path = path[1:-1]
    if not path:
        raise InputError(f"{command} needs the name of a file: {command} FILE")
    return path


def _refuse_misspelt(word: str, rest: str, message: str) -> None:
    """Raise `InputError` for a message that looks like a command which does not exist."""
    if "\n" in message.strip() or not re.fullmatch(r"/[A-Za-z0-9_?-]+", word):
        return
    close = difflib.get_close_matches(word, COMMANDS, 1, cutoff=0.7)
    if close or not rest:
        hint = f"did you mean {close[0]}?" if close else "/help lists them."
        raise InputError(f"there is no command {word}; {hint} A space before it sends it as a message")


COMMANDS: dict[str, tuple[str, Callable[[Conversation, str], None]]] = {
    "/system": ("TEXT: set the system prompt; without TEXT, remove it", Conversation.set_system),
    "/retry": ("another answer to the last message", Conversation.retry),
    "/undo": ("takes the last message and its answer back", Conversation.undo),
    "/clear": ("forgets the conversation", Conversation.clear),
    "/save": ("FILE: writes the conversation", Conversation.save),
    "/load": ("FILE: goes on with a saved conversation", Conversation.load),
    "/model": ("PATH|ID: continues with another model; nothing prints its name", Conversation.change_model),
    "/stats": ("speed, memory and cache of the last answer", Conversation.print_stats),
    "/think": ("[MESSAGE]: the model thinks before it answers", Conversation.think),
    "/no_think": ("[MESSAGE]: it answers at once", Conversation.no_think),
    "/help": ("this list", Conversation.help),
    "/bye": ("leaves; so do /exit and /quit", Conversation.leave),
    "/exit": ("", Conversation.leave),
    "/quit": ("", Conversation.leave),
    "/?": ("", Conversation.help),
}
"""Command → one line of help, and what it does."""
