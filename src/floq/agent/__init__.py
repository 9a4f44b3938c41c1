"""An agent: a critic and an actor over one pytree. Pure: no disk, no environment, no clock."""
