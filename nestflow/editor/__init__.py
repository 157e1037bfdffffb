"""What editors and terminals need to know of the language: colours, grammars, snippets, the schema of the YAML form."""
