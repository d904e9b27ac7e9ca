"""``python -m jaxdeblur COMMAND`` is ``jaxdeblur COMMAND``, for where that is not on the path."""

from jaxdeblur.commands import main

main()
