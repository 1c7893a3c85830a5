"""The web page of a ground station: what comes down, seen as it comes. `decoder_node.page.app` is the way in."""
