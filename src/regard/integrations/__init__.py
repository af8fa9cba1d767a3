"""Other people's libraries, one module each; nothing here is imported unasked."""
