package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/api/pki"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/internal/lab"
)

func TestMain(m *testing.M) {
	lab.Main()
	testscript.Main(m, map[string]func(){"coloctl": main})
}

// coloctl runs the program in this process.
func coloctl(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	var o, e bytes.Buffer
	code = run(t.Context(), append([]string{"coloctl"}, args...), &o, &e)
	return code, o.String(), e.String()
}

// walk visits every command.
func walk(commands []*cli.Command, path []string, visit func(path []string, c *cli.Command)) {
	for _, c := range commands {
		p := append(append([]string(nil), path...), c.Name)
		visit(p, c)
		walk(c.Subcommands, p, visit)
	}
}

// What every command must have and refuse, so that a new one can't forget it.
func TestEveryCommand(t *testing.T) {
	app, r := newApp(&bytes.Buffer{}, &bytes.Buffer{})
	walk(app.Commands, nil, func(path []string, c *cli.Command) {
		t.Run(strings.Join(path, " "), func(t *testing.T) {
			with := func(more ...string) []string { return append(append([]string(nil), path...), more...) }
			if c.Usage == "" {
				t.Error("no usage")
			}
			for _, bad := range [][]string{with("--no-such-flag"), with("--timeout")} {
				if code, _, msg := coloctl(t, bad...); code != exitUsage || msg == "" {
					t.Errorf("%q: exit code %d, %q", bad, code, msg)
				}
			}
			if code, _, msg := coloctl(t, with("no-such-command-or-operand", "2", "3")...); code == exitOK || msg == "" {
				t.Errorf("operands that make no sense: exit code %d, %q", code, msg)
			}
			if code, out, _ := coloctl(t, with("--help")...); code != exitOK || !strings.Contains(out, "USAGE") {
				t.Errorf("--help: exit code %d, %q", code, out)
			} else {
				checkHelp(t, out)
			}
			if code, out, _ := coloctl(t, append([]string{"help"}, path...)...); code != exitOK || !strings.Contains(out, "coloctl "+strings.Join(path, " ")) {
				t.Errorf("help: exit code %d, %q", code, out)
			}
			if len(c.Subcommands) > 0 {
				if code, _, msg := coloctl(t, with("nonsense")...); code != exitUsage || !strings.Contains(msg, "nonsense") {
					t.Errorf("an unknown command: exit code %d, %q", code, msg)
				}
				return
			}
			o, ok := r[c]
			if !ok {
				t.Fatal("it was not made by rules.leaf")
			}
			if o.max >= 0 {
				if code, _, msg := coloctl(t, with(strings.Split(strings.Repeat("x ", o.max+1), " ")[:o.max+1]...)...); code != exitUsage {
					t.Errorf("one operand too many: exit code %d, %q", code, msg)
				}
			}
			if o.min > 0 {
				if code, _, msg := coloctl(t, path...); code != exitUsage {
					t.Errorf("no operand: exit code %d, %q", code, msg)
				}
			}
			if code, _, msg := coloctl(t, with("--timeout=-1s", "x")...); code != exitUsage {
				t.Errorf("a negative timeout: exit code %d, %q", code, msg)
			}
			if o.command {
				return // it prints what another program prints
			}
			operands := strings.Fields(strings.Repeat("x ", o.min))
			if code, _, msg := coloctl(t, append(with(operands...), "-o", "xml")...); code != exitUsage || !strings.Contains(msg, "xml") {
				t.Errorf("-o xml after the operands: exit code %d, %q", code, msg)
			}
		})
	})
}

// checkHelp looks whether a help page fits a plain terminal and says what its values are.
func checkHelp(t *testing.T, page string) {
	t.Helper()
	for line := range strings.Lines(page) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > screenWidth {
			t.Errorf("%d columns: %q", n, line)
		}
		if strings.HasPrefix(line, "   -") && strings.Contains(line, " value") {
			t.Errorf("a value without a name: %q", line)
		}
	}
}

func TestReorder(t *testing.T) {
	tests := []struct{ typed, want string }{
		{"lab run story -o json", "lab run -o json -- story"},
		{"lab run -o json story", "lab run -o json -- story"},
		{"lab run story --output=json --keep -n 3", "lab run --output=json --keep -n 3 -- story"},
		{"lab run --keep story", "lab run --keep -- story"},
		{"lab run -- --keep", "lab run -- --keep"},
		{"lab run story -- -o json", "lab run -- story -o json"},
		{"lab run story -o", "lab run -o -- story"},
		{"lab run - --keep", "lab run --keep -- -"},
		{"lab shell n1 ls -l", "lab shell -- n1 ls -l"},
		{"lab shell --name x n1 ls --name y -- z", "lab shell --name x -- n1 ls --name y -- z"},
		{"lab shell n1 -- ls", "lab shell -- n1 -- ls"},
		{"lab shell n1 --name x ls -l --name y", "lab shell --name x -- n1 ls -l --name y"},
		{"lab shell n1 --name=x -- ls", "lab shell --name=x -- n1 -- ls"},
		{"lab shell n1 --help", "lab shell --help -- n1"},
		{"lab nonsense --keep", "lab nonsense --keep"},
		{"--help", "--help"},
		{"", ""},
	}
	for _, tt := range tests {
		app, r := newApp(&bytes.Buffer{}, &bytes.Buffer{})
		got := r.reorder(app, append([]string{"coloctl"}, strings.Fields(tt.typed)...))
		if diff := cmp.Diff(append([]string{"coloctl"}, strings.Fields(tt.want)...), got); diff != "" {
			t.Errorf("%s: %s", tt.typed, diff)
		}
	}
}

func TestExitCode(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("somewhere: %w", fmt.Errorf("deep: %w", err)) }
	tests := []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{usagef("x"), 2},
		{lab.ErrUnknownScenario, 2},
		{lab.ErrNoLab, 3},
		{lab.ErrExists, 4},
		{errExists, 4},
		{pki.ErrExists, 4},
		{fs.ErrExist, 4},
		{&lab.PreconditionError{Op: "x", Err: lab.ErrNoTun}, 4},
		{errTimeout, 5},
		{context.DeadlineExceeded, 5},
		{fmt.Errorf("n1: %w: %w", api.ErrUnreachable, context.DeadlineExceeded), 1}, // its host is off: not our time is over
		{fmt.Errorf("n1: %w: %w", api.ErrUnreachable, errTimeout), 5},
		{arbiter.ErrUnreachable, 6},
		{&lab.ExitError{Code: 77}, 77},
		{lab.ErrInterrupted, 130},
		{errors.Join(errors.New("x"), lab.ErrInterrupted), 130},
	}
	for _, tt := range tests {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.err, got, tt.want)
		}
		if tt.err != nil {
			if got := exitCode(wrap(tt.err)); got != tt.want {
				t.Errorf("%v, wrapped: %d, want %d", tt.err, got, tt.want)
			}
		}
	}
}

func TestMessages(t *testing.T) {
	tests := []struct {
		args string
		code int
		says string
	}{
		{"lab run kill-everything", exitUsage, "coloctl lab list"},
		{"lab run story -n 0", exitUsage, "1 or more"},
		{"lab run story --seed x", exitUsage, "seed"},
		{"lab run story --plot /tmp/x.png", exitUsage, ".svg"},
		{"lab run story --plot /no/such/folder/x.svg", exitUsage, "no such file or directory"},
		{"lab status", exitNotRunning, "coloctl lab up"},
		{"lab down --name x", exitNotRunning, "no such lab is up"},
		{"lab shell n1", exitNotRunning, "no such lab is up"},
		{"lab status --name ../x", exitUsage, "a-z"},
		{"nonsense", exitUsage, `"nonsense"; see: coloctl --help`},
		{"vm nonsense", exitUsage, `"nonsense"; see: coloctl vm --help`},
		{"help vm nonsense", exitUsage, `"nonsense"; see: coloctl vm --help`},
		{"status -contxt x", exitUsage, "coloctl status: flag provided but not defined: -contxt; see: coloctl status --help"},
		{"pki init --life nonsense", exitUsage, "coloctl pki init: --life nonsense: expected a time, such as 90s, 10m or 24h; see: coloctl pki init --help"},
		{"lab run story -n x", exitUsage, "-n x: expected a whole number;"},
		{"lab run story --seed -1", exitUsage, "--seed -1: expected a whole number that is not negative;"},
		{"status --watch=maybe", exitUsage, "--watch maybe: expected true or false;"},
		{"context add foo --node n1=1.2.3.4 --identity x --trust y", exitUsage, "expected HOST:PORT"},
		{"vm create -f /no/such/file.yaml", exitUsage, "-f: open /no/such/file.yaml: no such file or directory"},
		{"events --kind nonsense", exitUsage, `"nonsense": expected one of backup, `},
		{"disk create x.raw n1 --size 10apples", exitUsage, "10apples"},
	}
	for _, tt := range tests {
		code, _, msg := coloctl(t, strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(msg, tt.says) || !strings.HasPrefix(msg, "coloctl: ") {
			t.Errorf("%s: exit code %d (want %d), %q (want %q)", tt.args, code, tt.code, msg, tt.says)
		}
	}
}

func TestOutputs(t *testing.T) {
	for _, tt := range []struct{ args, says string }{
		{"lab list", "kill-primary-qemu"},
		{"lab list -o json", `{"name":"kill-primary-qemu",`},
		{"lab list -o yaml", "- name: kill-primary-qemu"},
		{"version", "coloctl "},
		{"--version", "coloctl "},
		{"help", "COMMANDS"},
		{"version -o json", `"go":"go`},
	} {
		code, out, msg := coloctl(t, strings.Fields(tt.args)...)
		if code != exitOK || !strings.Contains(out, tt.says) {
			t.Errorf("%s: exit code %d, %q, %q", tt.args, code, out, msg)
		}
	}
}

// What changes something on the nodes says first what it would do, if asked, and can be given a reason; what goes on by itself needn't be waited for.
func TestChangingCommands(t *testing.T) {
	changes := map[string]bool{ // and whether it goes on by itself
		"vm create": false, "vm import": false, "vm delete": false, "vm edit": false, "vm start": true, "vm stop": true, "vm checkpoint": true, "vm restore-record": true,
		"protect": true, "unprotect": true, "switchover": true, "failover": true, "resync": true,
		"disk offline": false, "disk online": false, "disk verify": true, "disk create": false, "disk import": false, "disk export": true, "disk resize": false,
		"vm backup": true, "vm restore": false, "node balance": false,
	}
	app, _ := newApp(&bytes.Buffer{}, &bytes.Buffer{})
	walk(app.Commands, nil, func(path []string, c *cli.Command) {
		name := strings.Join(path, " ")
		var flags []string
		for _, f := range c.Flags {
			flags = append(flags, f.Names()...)
		}
		has := func(names ...string) bool {
			for _, n := range names {
				if !slices.Contains(flags, n) {
					return false
				}
			}
			return true
		}
		goesOn, change := changes[name]
		if change && !has("dry-run", "yes", "reason", "context", "timeout", "output") {
			t.Errorf("%s: flags %q", name, flags)
		}
		if goesOn && !has("wait", "no-wait") {
			t.Errorf("%s can't be left alone: flags %q", name, flags)
		}
		if name == "setup" || name == "setup join" { // they change this host first, and ask no context
			if !has("dry-run", "yes", "timeout", "output") {
				t.Errorf("%s: flags %q", name, flags)
			}
			return
		}
		if !change && has("dry-run") {
			t.Errorf("%s changes something, and is not in this test", name)
		}
		delete(changes, name)
	})
	if len(changes) > 0 {
		t.Errorf("missing: %v", changes)
	}
}

func contextFor(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}
