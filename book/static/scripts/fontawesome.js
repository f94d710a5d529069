// Takes the place of the theme's icon script, 540 kB compressed; the theme's style sheet holds the same icons.
