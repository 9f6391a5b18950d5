"""Whether the model hub can be reached from here, without waiting long for the answer."""

import functools
import threading
import urllib.error
import urllib.request

from huggingface_hub import constants

TIMEOUT_S = 2.0


@functools.cache
def hub_is_reachable() -> str | None:
    """None if it is, else the reason in a few words. Asked once a process, for at most 2 seconds."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer = ["no answer within 2 seconds"]
    # a name server that does not answer ignores every timeout given here
    thread = threading.Thread(target=_ask, args=(answer,), daemon=True)
    thread.start()
    thread.join(TIMEOUT_S + 0.5)
    return answer[0] or None


def _ask(answer: list[str]) -> None:
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
        answer[0] = ""
    except urllib.error.HTTPError:
        answer[0] = ""  # it answers
    except (OSError, ValueError) as error:
        answer[0] = str(getattr(error, "reason", error))
