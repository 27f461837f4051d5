"""Where collisions come from: process cards, generation, detector response, and the event store."""
