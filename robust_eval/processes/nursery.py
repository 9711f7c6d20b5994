"""Where workers come from: one template at a time, and the orders that it gets.

The template is asked for a few workers at a time: a channel that is full of orders at one end and of answers at the
other would block both.
"""

from collections import deque
from collections.abc import Iterator

from robust_eval.processes import wire
from robust_eval.processes.link import TemplateLink
from robust_eval.processes.port import Port
from robust_eval.processes.settings import Settings

_MOST_FORKING = 32
_END_S = 1.0


class Nursery:
    """The template, and the workers that it has yet to fork.

    Args:
        settings: how it is started.
        first: a template that was started ahead.
    """

    def __init__(self, settings: Settings, first: TemplateLink | None = None) -> None:
        self.template: TemplateLink | None = None
        self._first = first
        self._settings = settings
        self._waiting: deque[Port] = deque()
        self._forking = 0

    def open(self) -> TemplateLink:
        """Start a template.

        Raises:
            OSError: no process or no descriptor is free for it.
        """
        first, self._first = self._first, None
        self.template = first or TemplateLink(self._settings)
        return self.template

    def discard_first(self) -> None:
        """End a template that was started ahead and never wanted."""
        first, self._first = self._first, None
        if first is not None:
            first.kill()
            first.end(_END_S)
            first.close()

    def close(self) -> None:
        """The template is gone, and so is what it was asked for."""
        self.template = None
        self._waiting.clear()
        self._forking = 0

    def order(self, *ports: Port) -> None:
        """Have these workers forked, as soon as the template is ready for them."""
        self._waiting.extend(ports)
        template = self.template
        while template is not None and template.ready and self._waiting and self._forking < _MOST_FORKING:
            port = self._waiting.popleft()
            if port.child_fds:
                self._forking += 1
                template.fork(port.worker_id, port.child_fds)
                port.hand_over()

    def hear(self) -> Iterator[tuple[wire.Told, list[int]]]:
        """What the template says of workers, each with the descriptors that came with it."""
        while (template := self.template) is not None:
            told, fds = wire.hear(template.sock)
            if told is None:
                return
            if told.kind == wire.TEMPLATE_READY:
                template.ready = True
            elif told.kind == wire.TEMPLATE_FAILED:
                template.detail = told.text
            else:
                self._forking -= told.kind != wire.EXITED
                yield told, fds
