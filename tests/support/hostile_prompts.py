"""Prompts that try to be more than text."""

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)',
    "javascript:alert(1)",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "<!--<script>",
    "-->",
    "<svg/onload=alert(1)>",
    "]]><script>alert(1)</script>",
    "&lt;b&gt; &amp;amp; &#60;",
    "{{ 7*7 }} {% raw %}",
    "\u2028\u2029</ScRiPt >",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<base href=//evil.example/>",
    "<style>*{display:none}</style>",
    "\u202egnp.nomel 日本 🍋 <a href=//evil.example ping=//evil.example>",
]
