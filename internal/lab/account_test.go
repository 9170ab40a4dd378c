package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAccount(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, lines ...string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("n1/colod.log", `time=2026-01-01T00:00:01.000Z level=INFO msg=state from=solo to=protected`, `time=2026-01-01T00:00:04.000Z level=INFO msg=request path=/v1/status`,
		`time=2026-01-01T00:00:05.000Z level=WARN msg="a step failed" step=cut`)
	write("n2/colod.log", `time=2026-01-01T00:00:02.000Z level=INFO msg=state from=secondary to=solo`)
	write("n2/run/vm/serial.log", "booting\r", "GUEST-READY 1\r")
	got, err := Account(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := `n1: time=2026-01-01T00:00:01.000Z level=INFO msg=state from=solo to=protected
n2: time=2026-01-01T00:00:02.000Z level=INFO msg=state from=secondary to=solo
n1: time=2026-01-01T00:00:05.000Z level=WARN msg="a step failed" step=cut
n2/run/vm/serial.log: booting
n2/run/vm/serial.log: GUEST-READY 1
`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
