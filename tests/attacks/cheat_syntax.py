# verdict | is no Python | right: SyntaxError | shown: none: fails anywhere
exec("def")
