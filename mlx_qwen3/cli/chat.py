"""Chat with a model in the terminal. Ctrl-C stops an answer, Ctrl-D or /bye leaves the chat."""

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
from ..errors import InputError, MlxQwen3Error, one_line
from .constraint_flags import add_constraint_flags, add_tool_flags
from .interrupts import defer_interrupts
from .line_input import ReadLine, Typed, line_reader, read_message
from .model_flags import (
    add_model_flags,
    add_sampling_flags,
    add_speculation_flags,
    add_thinking_flags,
    load_model,
    make_session,
    save_prompt_cache,
)
from .printing import answer_printer, part_text, quiet_terminal, speed_lines
from .ranks import current_group, is_first_process
from .standard_streams import ClosedInput

logger = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the verb and its flags."""
    parser = subparsers.add_parser("chat", help="chat with a model", description=__doc__)
    parser.add_argument("--system-prompt", metavar="TEXT", help="system prompt")
    parser.add_argument("message", nargs="?", metavar="MESSAGE", help="the first message, in quotes")
    parser.add_argument("--prompt", "-p", metavar="TEXT", help="same as MESSAGE")
    parser.add_argument("--plain", action="store_true", help="print answers without rendering Markdown")
    parser.add_argument(
        "--no-history", action="store_true", help="do not save the messages you type to the history file"
    )
    add_model_flags(parser)
    add_sampling_flags(parser)
    add_thinking_flags(parser)
    add_speculation_flags(parser)
    add_constraint_flags(parser)
    add_tool_flags(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the conversation until the input ends or `/bye`, and return the exit status."""
    if args.message is not None and args.prompt is not None:
        raise InputError("MESSAGE and --prompt are both given. Leave one of them out.")
    first = args.message if args.message is not None else args.prompt
    closed = isinstance(sys.stdin, ClosedInput)
    if closed and first is None:
        sys.stdin.readline()  # raises InputError before the model is loaded
    model, tokenizer = load_model(args, show_fit=sys.stdin.isatty())
    session = make_session(args, model, tokenizer)
    session.model_name = args.model or "the bundled model"
    chat = Conversation(session, args.thinking, args.verbose, args.plain, partial(_open_session, args))
    if sys.stdin.isatty():
        print("Type a message. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves the chat.")
    if first is not None:
        chat.take(Typed(first))
    status = chat.loop(_read_nothing if closed else line_reader(not args.no_history, tuple(COMMANDS)))
    if chat.session is session:  # the cache of another model is useless to the next run
        save_prompt_cache(args, session)
    return status


def _read_nothing(prompt: str) -> str:
    raise EOFError


def _open_session(args: argparse.Namespace, name: str) -> Any:
    """Return a session with another model and the same flags, except those that only apply to the first model."""
    own = {"adapter": None, "revision": None, "gguf_file": None, "prompt_cache_file": None}
    args = argparse.Namespace(**{**vars(args), **own, "model": name})
    model, tokenizer = load_model(args, show_fit=True)
    session = make_session(args, model, tokenizer)
    session.model_name = name
    return session


@dataclass
class Conversation:
    """Run an interactive conversation on top of a `ChatSession`.

    Args:
        session: the session that generates the answers.
        thinking: how reasoning is displayed; see `AnswerPrinter`.
        verbose: whether to print speed and memory after every answer.
        plain: whether to print answers without rendering Markdown.
        open_model: function that returns a session for a model name, for `/model`; None to disable the command.
    """

    session: Any
    thinking: str
    verbose: bool = False
    plain: bool = False
    open_model: Callable[[str], Any] | None = None
    over: bool = field(default=False, init=False)
    failed: bool = field(default=False, init=False)

    def loop(self, read_line: ReadLine) -> int:
        """Process messages until the input ends. Return the exit status: 1 if a message of a pipe failed, else 0."""
        while not self.over:
            try:
                message = read_message(read_line)
            except EOFError:
                break
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                print("(Press Ctrl-D or type /bye to leave)")
                continue
            except InputError as error:
                self._report_error(error)
                self.over = not sys.stdin.isatty()
                continue
            try:
                self.take(message)
            except KeyboardInterrupt:  # between two parts of an answer, or a second Ctrl-C
                if not sys.stdin.isatty():
                    raise
        return 1 if self.failed and not sys.stdin.isatty() else 0

    def take(self, message: str) -> None:
        """Run a command or send a message. Errors are printed in one line, and the conversation continues."""
        word, rest = [*message.split(maxsplit=1), "", ""][:2]
        if message[:1].isspace() and word:  # a space before the slash sends the line as a message
            word = "message"
        try:
            if word in COMMANDS and "\n" not in message.strip():
                self._run_command(word, rest.strip())
            elif word:
                _check_spelling(word, rest, message)
                self.show(self.session.send, message)
        except MlxQwen3Error as error:
            self._report_error(error)

    def _run_command(self, word: str, rest: str) -> None:
        try:
            COMMANDS[word][1](self, rest)
        except (MlxQwen3Error, KeyboardInterrupt):
            raise
        except Exception as error:  # a failing command must not end the conversation
            logger.debug("%s failed", word, exc_info=True)
            self._report_error(InputError(f"{word} failed: {type(error).__name__}: {one_line(error)}."))

    def _report_error(self, error: Exception) -> None:
        self.failed = True
        print(f"{error}", file=sys.stderr)

    def show(self, turn: Callable[..., Any], *arguments: Any) -> None:
        """Print an answer while it is generated; Ctrl-C stops it.

        Args:
            turn: method of the session that returns the parts of an answer, called with `arguments`.
        """
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
        """Set the system prompt; an empty text removes it."""
        self.session.system = text or None
        print("The system prompt is set." if text else "There is no system prompt now.", file=sys.stderr)

    def retry(self, _: str) -> None:
        """Generate another answer to the last message."""
        self.show(self.session.retry)

    def undo(self, _: str) -> None:
        """Remove the last message and its answer."""
        message = self.session.undo()
        print("There is no message to remove." if message is None else f"Removed: {message}", file=sys.stderr)

    def clear(self, _: str) -> None:
        """Start a new conversation."""
        self.session.clear()
        print("The conversation is cleared.", file=sys.stderr)

    def save(self, path: str) -> None:
        """Write the conversation to a file; on a terminal, ask before overwriting one."""
        path = _parse_name(path, "/save")
        if os.path.exists(os.path.expanduser(path)) and sys.stdin.isatty():
            print(f"{path} exists. Overwrite it? [y/N] ", end="", file=sys.stderr, flush=True)
            if not sys.stdin.readline().strip().lower().startswith("y"):
                print("Not saved.", file=sys.stderr)
                return
        if is_first_process():
            self.session.save(path)
        print(f"Saved {len(self.session.messages)} messages to {path}.", file=sys.stderr)

    def load(self, path: str) -> None:
        """Continue a saved conversation and print its last two messages."""
        from ..distributed import same_outcome

        with same_outcome(current_group()):
            saved_with = self.session.load(_parse_name(path, "/load"))
        print(f"Loaded {len(self.session.messages)} messages.", file=sys.stderr)
        if saved_with not in (None, self.session.model_name):
            print(
                f"They were generated with {saved_with}; the current model is {self.session.model_name}.",
                file=sys.stderr,
            )
        for message in self.session.messages[-2:]:
            text = " ".join(str(message["content"]).split())
            print(f"{message['role']}: {text if len(text) < 200 else text[:200] + '…'}", file=sys.stderr)

    def change_model(self, name: str) -> None:
        """Continue the conversation with another model; without a name, print that of the current one."""
        if not name:
            print(f"The current model is {self.session.model_name}.", file=sys.stderr)
            return
        if self.open_model is None:
            raise InputError("the model of this conversation cannot be changed. Start another chat with --model.")
        before, session = self.session, self.open_model(_parse_name(name, "/model"))
        session.system, session.messages, session.sampling = before.system, before.messages, before.sampling
        if before.support is session.support is ThinkingSupport.OPTIONAL:
            session.set_thinking(before.thinking)
        self.session = session
        print(f"The conversation continues with {session.model_name}.", file=sys.stderr)

    def print_stats(self, _: str) -> None:
        """Print speed, memory and sampling options of the last answer."""
        stats = self.session.stats
        if stats is None:
            raise InputError("there is no answer yet. Send a message first.")
        lines = speed_lines(stats.response, stats.reused_tokens)
        if stats.reasoning_tokens:
            lines.append(f"thinking: {stats.reasoning_tokens} tokens")
        lines.append(f"cache: {len(self.session.cached_ids)} tokens, {stats.cache_bytes / 1e6:.1f} MB")
        lines.append(f"sampling: {stats.sampling}")
        print(*lines, sep="\n", file=sys.stderr)

    def think(self, message: str) -> None:
        """Turn thinking on, then send the message if there is one."""
        self._switch(True, message)

    def no_think(self, message: str) -> None:
        """Turn thinking off, then send the message if there is one."""
        self._switch(False, message)

    def _switch(self, thinking: bool, message: str) -> None:
        self.session.set_thinking(thinking)
        print(f"Thinking is {'on' if thinking else 'off'}.", file=sys.stderr)
        if message:
            self.show(self.session.send, message)

    def help(self, _: str) -> None:
        """Print the commands."""
        for word, (line, _command) in COMMANDS.items():
            if line:
                print(f"{word:<12} {line}", file=sys.stderr)
        print('"""          start and end a message of several lines', file=sys.stderr)

    def leave(self, _: str) -> None:
        """Leave the conversation."""
        self.over = True


def _parse_name(path: str, command: str) -> str:
    """Return a file or model name without the quotes around it. Raises `InputError` for an empty one."""
    path = path.strip()
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        path = path[1:-1]
    if not path:
        raise InputError(f"{command} needs a name. Type {command} NAME.")
    return path


def _check_spelling(word: str, rest: str, message: str) -> None:
    """Raise `InputError` for a message that looks like a command but is not one."""
    if "\n" in message.strip() or not re.fullmatch(r"/[A-Za-z0-9_?-]+", word):
        return
    close = difflib.get_close_matches(word, COMMANDS, 1, cutoff=0.7)
    if close or not rest:
        hint = f"Did you mean {close[0]}?" if close else "/help lists the commands."
        raise InputError(f"there is no command {word}. {hint} Put a space before it to send it as a message.")


COMMANDS: dict[str, tuple[str, Callable[[Conversation, str], None]]] = {
    "/system": ("TEXT: set the system prompt; without TEXT, remove it", Conversation.set_system),
    "/retry": ("generate another answer to the last message", Conversation.retry),
    "/undo": ("remove the last message and its answer", Conversation.undo),
    "/clear": ("start a new conversation", Conversation.clear),
    "/save": ("FILE: save the conversation", Conversation.save),
    "/load": ("FILE: continue a saved conversation", Conversation.load),
    "/model": (
        "PATH|ID: continue with another model; without a name, print the current one",
        Conversation.change_model,
    ),
    "/stats": ("print speed, memory and cache size of the last answer", Conversation.print_stats),
    "/think": ("[MESSAGE]: turn thinking on", Conversation.think),
    "/no_think": ("[MESSAGE]: turn thinking off", Conversation.no_think),
    "/help": ("print this list", Conversation.help),
    "/bye": ("leave the chat; also /exit and /quit", Conversation.leave),
    "/exit": ("", Conversation.leave),
    "/quit": ("", Conversation.leave),
    "/?": ("", Conversation.help),
}
"""Command → its line of help, empty for an alias, and the method that runs it."""
