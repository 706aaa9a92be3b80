"""What a TPU pod needs to be known before there is one: topologies, compiled programs, their memory and traffic."""
