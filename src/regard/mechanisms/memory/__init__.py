"""Something is carried: what was seen lives on in states, slots or relays."""
