package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestTableFitsATerminal(t *testing.T) {
	fill := func(width int) string {
		var b bytes.Buffer
		w := table(&b, "VM", "PROTECTED", "WHY NOT")
		w.width = width
		w.row("web", "no", strings.Repeat("some words of a reason ", 8))
		w.row("db", "yes", "")
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if got := fill(0); strings.Count(got, "\n") != 3 {
		t.Errorf("not on a terminal: %q", got)
	}
	got := fill(60)
	words := 0
	for line := range strings.Lines(got) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 60 {
			t.Errorf("%d columns: %q", n, line)
		}
		words += strings.Count(line, "reason")
	}
	if words != 8 || !strings.Contains(got, "\ndb ") {
		t.Errorf("%s", got)
	}
}

func TestHang(t *testing.T) {
	line := "12:00:00.000  n1 web  state  " + strings.Repeat("word ", 20) + "end"
	if got := hang(line, 14, 0); got != line {
		t.Errorf("without a width: %q", got)
	}
	got := strings.Split(hang(line, 14, 50), "\n")
	for i, l := range got {
		if len(l) > 50 || i > 0 && !strings.HasPrefix(l, strings.Repeat(" ", 14)+"word") {
			t.Errorf("line %d: %q", i, l)
		}
	}
	if last := got[len(got)-1]; !strings.HasSuffix(last, "word end") {
		t.Errorf("the end is lost: %q", last)
	}
}
