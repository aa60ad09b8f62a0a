"""What the processes of one service agree on; nothing that takes time to import."""

import signal

HTTP = "http"  # the socket of the engine's HTTP app, in the folder that they share
LINK = "link"  # the socket for steps, in messages
READY = b"ready\n"  # said to the supervisor once requests can be taken
BEAT, BEAT_S = b"\n", 5.0  # what the supervisor hears after that, and how often
RETIRE = signal.SIGUSR1  # to the engine: the service is about to end, and from now on not ready
REFUSED = 2  # exit status of a process that has said why it does not start
