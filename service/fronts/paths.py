"""What the processes of one service agree on: the sockets in the folder that they share, and the word of readiness."""

HTTP = "http"  # the engine's HTTP app
LINK = "link"  # steps, in messages
READY = b"ready\n"  # from the engine to the supervisor, once requests can be taken
