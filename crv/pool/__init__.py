"""Who answers the agents: one protocol, several back ends."""
