"""Names that try to be more than names."""

HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    '" onfocus="window.hacked=1" autofocus="',
    "' onclick='window.hacked=1",
    "]]></title><script>window.hacked=1</script>",
    "<!--<script>",
    "{{ 7*7 }}{% raw %}",
    "{provider}{client}{redirecting}",
    "${window.hacked=1}",
    '\\"];}" -> "x" /* \\N \\n',
    "&lt;b&gt;&#0;&amp;",
    "a\x00\x01\x1b]0;x\x07\u202e\ud800\u2028\u2029",
    "http://example.org/?<a href='//example.org'>",
    "long " * 2000,
)
