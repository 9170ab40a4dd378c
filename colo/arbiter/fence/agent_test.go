package fence

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ours is an agent that keeps the power in a file, and can be told to misbehave.
const ours = `#!/bin/sh
plug=; mode=; file=; action=reboot
while IFS= read -r line; do
	case "$line" in
	plug=*) plug=${line#plug=} ;;
	mode=*) mode=${line#mode=} ;;
	file=*) file=${line#file=} ;;
	password=*) password=${line#password=} ;;
	action=*) action=${line#action=} ;;
	esac
done
echo "$# $action" >>"$file.log"
case "$mode$action" in
brokenoff) echo "login failed with password $password for $plug" >&2; exit 1 ;;
hangoff) sleep 1000 & wait ;;
killedoff) kill -9 $$ ;;
lieoff) exit 0 ;;
mutestatus) exit 1 ;;
esac
case "$action" in
off) echo off >"$file" ;;
reboot) echo on >"$file" ;;
status) [ "$(cat "$file")" = on ] && exit 0; exit 2 ;;
monitor) ;;
metadata) cat <<X
<?xml version="1.0" ?><resource-agent name="ours" shortdesc="test"><parameters><parameter name="plug" required="1"><shortdesc lang="en">Which</shortdesc></parameter>
<parameter name="file"/><parameter name="mode"/><parameter name="password"/><parameter name="action"/></parameters><actions><action name="off"/><action name="status"/></actions></resource-agent>
X
;;
*) exit 1 ;;
esac
`

func agent(t *testing.T, mode string) (a Agent, state string) {
	t.Helper()
	dir := t.TempDir()
	path, state := filepath.Join(dir, "fence_ours"), filepath.Join(dir, "power")
	for p, c := range map[string]string{path: ours, state: "on\n"} {
		if err := os.WriteFile(p, []byte(c), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return Agent{Path: path, Options: map[string]string{"plug": "7", "mode": mode, "file": state, "password": "geheim"}}, state
}

func power(t *testing.T, file string) string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

func TestFenceIsProof(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		mode   string
		change func(*Agent)
		ok     bool
		power  string
	}{
		{mode: "", ok: true, power: "off"},
		{mode: "", change: func(a *Agent) { a.Action = Reboot }, ok: true, power: "on"},
		{mode: "", change: func(a *Agent) { a.Action = Monitor }, power: "on"},
		{mode: "broken", power: "on"},
		{mode: "killed", power: "on"},
		{mode: "lie", power: "on"},
		{mode: "mute", power: "off"},
		{mode: "mute", change: func(a *Agent) { a.NoVerify = true }, ok: true, power: "off"},
		{mode: "hang", change: func(a *Agent) { a.Timeout = 300 * time.Millisecond }, power: "on"},
	} {
		a, file := agent(t, c.mode)
		if c.change != nil {
			c.change(&a)
		}
		began := time.Now()
		err := a.Fence(ctx)
		if (err == nil) != c.ok || power(t, file) != c.power {
			t.Errorf("mode %q: %v, power %s", c.mode, err, power(t, file))
		}
		if !c.ok && !errors.Is(err, ErrAgent) && !errors.Is(err, ErrUnfit) {
			t.Errorf("mode %q: %v", c.mode, err)
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("mode %q: the password is in %q", c.mode, err)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("mode %q took %v", c.mode, took)
		}
		if log, err := os.ReadFile(file + ".log"); err == nil && strings.Contains(string(log), "1 ") {
			t.Errorf("mode %q: arguments were given: %s", c.mode, log)
		}
	}
	a, _ := agent(t, "broken")
	var e *AgentError
	if err := a.Fence(ctx); !errors.As(err, &e) || e.Status != 1 || !strings.Contains(e.Output, "login failed") {
		t.Errorf("%v, %+v", err, e)
	}
	ended, end := context.WithCancel(ctx)
	end()
	if err := a.Fence(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

func TestStatus(t *testing.T) {
	a, file := agent(t, "")
	for want, p := range map[string]Power{"on": PoweredOn, "off": PoweredOff} {
		if err := os.WriteFile(file, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := a.Status(t.Context()); err != nil || got != p || got.String() != want {
			t.Errorf("%s: %v, %v", want, got, err)
		}
	}
	if err := a.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	a, _ = agent(t, "mute")
	if got, err := a.Status(t.Context()); !errors.Is(err, ErrAgent) || got != Unknown {
		t.Errorf("no status: %v, %v", got, err)
	}
}

func TestCheck(t *testing.T) {
	good, _ := agent(t, "")
	if err := good.Check(t.Context()); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(a *Agent){
		"unknown option":      func(a *Agent) { a.Options["color"] = "red" },
		"the action":          func(a *Agent) { a.Options["action"] = "on" },
		"two lines in one":    func(a *Agent) { a.Options["plug"] = "7\naction=on" },
		"action it can't do":  func(a *Agent) { a.Action = Reboot },
		"missing":             func(a *Agent) { a.Path += "x" },
		"a name nobody has":   func(a *Agent) { a.Path = "fence_nonsense" },
		"relative":            func(a *Agent) { a.Path = "./fence_ours" },
		"not executable":      func(a *Agent) { _ = os.Chmod(a.Path, 0o600) },
		"writable for others": func(a *Agent) { _ = os.Chmod(a.Path, 0o777) },
		"no description":      func(a *Agent) { _ = os.WriteFile(a.Path, []byte("#!/bin/sh\necho hello"), 0o700) },
	} {
		a, _ := agent(t, "")
		change(&a)
		if err := a.Check(t.Context()); !errors.Is(err, ErrUnfit) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestDebianAgent runs an agent of the distribution's package.
func TestDebianAgent(t *testing.T) {
	a := Agent{Path: "fence_dummy"}
	if _, err := a.find(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI must have the package fence-agents: %v", err)
		}
		t.Skipf("package fence-agents isn't here: %v", err)
	}
	file := filepath.Join(t.TempDir(), "status")
	if err := os.WriteFile(file, []byte("on"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Options = map[string]string{"status_file": file}
	if err := a.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p, err := a.Status(t.Context()); err != nil || p != PoweredOn {
		t.Errorf("before: %v, %v", p, err)
	}
	if err := a.Fence(t.Context()); err != nil || power(t, file) != "off" {
		t.Errorf("fence: %v, %s", err, power(t, file))
	}
	a.Options["type"], a.Options["plug"], a.Options["power_timeout"] = "fail", "1", "1"
	if err := a.Fence(t.Context()); !errors.Is(err, ErrAgent) {
		t.Errorf("an agent that fails: %v", err)
	}
	m, err := a.Metadata(t.Context())
	if err != nil || m.Name != "fence_dummy" || !strings.Contains(fmt.Sprint(m.Parameters), "status_file") {
		t.Errorf("%+v, %v", m, err)
	}
}
