"""The playground: a bundle's answers on a page, for people. `rgalign play BUNDLE`, docs/playground.md.

contexts     where contexts come from, and a context that was typed
changes      one change of a context: another value, a shorter history
shown        a context -> what the page shows of it, and two of them side by side
panels       that as HTML, everything escaped
page         the Gradio page round it, its server and what a browser may fetch
"""
