"""The verbs that the page may say, and what is remembered between clicks."""
