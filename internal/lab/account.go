package lab

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	accountLines = 60 // of what the daemons said, the last ones
	serialLines  = 40 // of each guest's console

	voicesName = "voices.txt" // what broke the rule of one voice
)

// Account tells what led to the end of the run in a lab's folder: what became of the VM on each node and what its daemons complained of, in the order of
// time, and how each guest's console ended. It is for a run that went wrong and whose folder nobody keeps.
func Account(dir string) (string, error) {
	logs, err := filepath.Glob(filepath.Join(dir, "*", "colod.log"))
	if err != nil {
		return "", err
	}
	var said []string
	for _, path := range logs {
		err = errors.Join(err, eachLine(path, func(line string) {
			if tells(line) {
				said = append(said, filepath.Base(filepath.Dir(path))+": "+line)
			}
		}))
	}
	slices.SortStableFunc(said, func(a, b string) int { return cmp.Compare(field(a, "time="), field(b, "time=")) })
	var b strings.Builder
	for _, line := range said[max(0, len(said)-accountLines):] {
		fmt.Fprintln(&b, line)
	}
	if text, readErr := os.ReadFile(filepath.Join(dir, voicesName)); readErr == nil {
		fmt.Fprintf(&b, "frames that broke the rule of one voice:\n%s", text)
	}
	consoles, globErr := filepath.Glob(filepath.Join(dir, "*", "run", "*", "serial.log"))
	err = errors.Join(err, globErr)
	for _, path := range consoles {
		var lines []string
		err = errors.Join(err, eachLine(path, func(line string) { lines = append(lines, line) }))
		rel, _ := filepath.Rel(dir, path)
		for _, line := range lines[max(0, len(lines)-serialLines):] {
			fmt.Fprintf(&b, "%s: %s\n", rel, strings.TrimRight(line, "\r"))
		}
	}
	return b.String(), err
}

// tells says whether a line of a daemon's log belongs in an account.
func tells(line string) bool {
	for _, s := range []string{" msg=state ", " msg=copy ", " msg=decision ", " msg=heartbeat ", " level=WARN ", " level=ERROR ", " msg=resync "} {
		if strings.Contains(line, s) {
			return true
		}
	}
	return false
}

// field returns the value that a line in slog's text form gives to a key.
func field(line, key string) string {
	_, rest, _ := strings.Cut(line, key)
	value, _, _ := strings.Cut(rest, " ")
	return value
}

func eachLine(path string, do func(string)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		do(s.Text())
	}
	return s.Err()
}
