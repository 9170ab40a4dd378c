package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// rows prints a table: a row of headings, if there are some, then rows. On a terminal that is too narrow long cells go on in the next lines.
type rows struct {
	out   io.Writer
	width int // of the terminal; 0 is no limit
	cells [][]string
}

const (
	columnGap = 2
	// leastColumn is how narrow a column may become.
	leastColumn = 8
)

func table(w io.Writer, headings ...string) *rows {
	t := &rows{out: w, width: widthOf(w)}
	if len(headings) > 0 {
		t.row(headings...)
	}
	return t
}

// row adds one. A cell is one line, whatever an error may have been joined of.
func (t *rows) row(cells ...string) {
	for i, c := range cells {
		cells[i] = oneLine(c)
	}
	t.cells = append(t.cells, cells)
}

// oneLine joins the lines of a text.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' }), "; ")
}

func (t *rows) flush() error {
	widths := t.widths()
	var b strings.Builder
	for _, row := range t.cells {
		lines := make([][]string, len(row))
		height := 1
		for i, cell := range row {
			lines[i] = []string{cell}
			if utf8.RuneCountInString(cell) > widths[i] {
				lines[i] = fold(cell, widths[i])
			}
			height = max(height, len(lines[i]))
		}
		for n := range height {
			line := ""
			for i := range row {
				text := ""
				if n < len(lines[i]) {
					text = lines[i][n]
				}
				line += fmt.Sprintf("%-*s", widths[i]+columnGap, text)
			}
			b.WriteString(strings.TrimRight(line, " ") + "\n")
		}
	}
	_, err := io.WriteString(t.out, b.String())
	return err
}

// widths are those of the columns: what is in them, made narrower from the widest on until they fit.
func (t *rows) widths() []int {
	var widths []int
	for _, row := range t.cells {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	total := func() (n int) {
		for _, w := range widths {
			n += w + columnGap
		}
		return n - columnGap
	}
	for t.width > 0 && total() > t.width {
		widest := 0
		for i, w := range widths {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= leastColumn {
			break
		}
		widths[widest]--
	}
	return widths
}

// plural counts things: 1 day, 2 days.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// fit cuts text to a width, and shows that it did.
func fit(text string, width int) string {
	text = strings.Join(strings.Fields(text), " ")
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:max(width-3, 0)]) + "..."
}

// fold breaks text into lines of a width, at spaces where there are some.
func fold(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		for utf8.RuneCountInString(word) > width {
			if line != "" {
				lines, line = append(lines, line), ""
			}
			r := []rune(word)
			lines, word = append(lines, string(r[:width])), string(r[width:])
		}
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
			line += " " + word
		default:
			lines, line = append(lines, line), word
		}
	}
	return append(lines, line)
}

// hang breaks a line that is too long for a terminal; what follows is indented. A width of 0 is no limit.
func hang(line string, indent, width int) string {
	if r := []rune(line); width > indent+leastColumn && len(r) > width {
		cut := width
		for i := width; i > width/2; i-- {
			if r[i] == ' ' {
				cut = i
				break
			}
		}
		line = strings.TrimRight(string(r[:cut]), " ")
		for _, l := range fold(string(r[cut:]), width-indent) {
			line += "\n" + strings.Repeat(" ", indent) + l
		}
	}
	return line
}

// bytesText prints a number of bytes for people.
func bytesText(n int64) string {
	for _, u := range []struct {
		unit string
		size float64
	}{{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if float64(n) >= u.size {
			return fmt.Sprintf("%.3g %s", float64(n)/u.size, u.unit)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// bar draws how far something is.
func bar(done, total int64, width int) string {
	if total <= 0 {
		return ""
	}
	filled := int(min(max(done, 0), total) * int64(width) / total)
	return "[" + strings.Repeat("#", filled) + strings.Repeat(".", width-filled) + "]"
}
