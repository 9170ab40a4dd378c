package packaging

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/internal/machine"
)

// hosts are the machines of the guide.
type hosts struct {
	t      *testing.T
	system string
	m      map[string]*machine.Machine
	accel  string
}

// boot starts a machine, with the kernel for the guest, which the guide's readers fetch, in reach.
func (h *hosts) boot(name string) {
	h.t.Helper()
	m, err := machine.Boot(h.t.Context(), name, h.system, filepath.Join(h.t.TempDir(), name))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if h.t.Failed() {
			h.explain(m)
		}
		if err := m.Stop(); err != nil {
			h.t.Error(err)
		}
	})
	h.m[name] = m
}

// explain says what a machine's daemons said.
func (h *hosts) explain(m *machine.Machine) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, _ := m.Command(ctx, "journalctl", "--no-pager", "-n", "60", "-u", "colod", "-u", "colod-witness").CombinedOutput()
	h.t.Logf("%s:\n%s", m.Name, out)
}

func (h *hosts) command(ctx context.Context, host, script string) *exec.Cmd {
	cmd := h.m[host].Command(ctx, "bash", "-eo", "pipefail", "-c", script)
	cmd.Env = append(cmd.Env, "COLOCTL_KERNEL=/opt/guest/vmlinuz", "COLOCTL_MODULES=/opt/guest/modules", "COLOCTL_ACCEL="+h.accel)
	return cmd
}

// run types something on a host and returns what it printed.
func (h *hosts) run(host, script string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 90*time.Second)
	defer cancel()
	out, err := h.command(ctx, host, script).CombinedOutput()
	if err != nil {
		h.t.Fatalf("on %s: %v\n%s\n%s", host, err, script, out)
	}
	return string(out)
}

// network lays what the guide takes for granted: cables, addresses, bridges, and ssh from n1 to the others. The witness's machine holds the switch.
func (h *hosts) network() {
	h.t.Helper()
	cable := func(a, ai, b, bi string) {
		h.t.Helper()
		if err := machine.Cable(machine.End{Machine: h.m[a], Interface: ai}, machine.End{Machine: h.m[b], Interface: bi}); err != nil {
			h.t.Fatal(err)
		}
	}
	bridge := `ip link add br0 type bridge; ip link set br0 up; ip address add %s/24 dev br0`
	h.run("w1", fmt.Sprintf(bridge, "192.0.2.20"))
	for i, n := range []string{"n1", "n2"} {
		cable(n, "eth0", "w1", "to-"+n)
		h.run("w1", "ip link set to-"+n+" master br0 up")
		h.run(n, fmt.Sprintf(bridge, fmt.Sprintf("192.0.2.%d", 11+i))+"; ip link set eth0 master br0 up")
	}
	for i := range 2 {
		dev := fmt.Sprintf("link%d", i)
		cable("n1", dev, "n2", dev)
		for j, n := range []string{"n1", "n2"} {
			h.run(n, fmt.Sprintf("ip address add 10.99.%d.%d/24 dev %s; ip link set %s up", i, j+1, dev, dev))
		}
	}
	key := h.run("n1", "ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519 && cat .ssh/id_ed25519.pub")
	for _, other := range []string{"n2", "w1"} {
		h.run(other, "mkdir -p .ssh && cat >> .ssh/authorized_keys <<'END'\n"+key+"END\n")
	}
	h.run("n1", "ssh-keyscan 192.0.2.12 192.0.2.20 > .ssh/known_hosts 2>/dev/null")
}

// await runs a script until it succeeds.
func (h *hosts) await(limit time.Duration, host, script string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), limit)
	defer cancel()
	var out []byte
	var err error
	for ctx.Err() == nil {
		if out, err = h.command(ctx, host, script).CombinedOutput(); err == nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	h.t.Fatalf("on %s, after %v: %v\n%s\n%s", host, limit, err, script, out)
}

// prepare puts what the guide's readers would fetch into the system: the kernel for the guest.
func prepare(t *testing.T, system string) (accel string) {
	t.Helper()
	for _, v := range []string{"COLOCTL_KERNEL", "COLOCTL_MODULES", "COLOCTL_ACCEL"} {
		if os.Getenv(v) == "" {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not set: run the tests with make", v)
			}
			t.Skipf("%s is not set: run the tests with make", v)
		}
	}
	to := filepath.Join(system, "opt/guest")
	if _, err := os.Stat(to); errors.Is(err, os.ErrNotExist) {
		run(t, exec.CommandContext(t.Context(), "sh", "-c", `mkdir -p "$2" && cp "$0" "$2/vmlinuz" && cp -r "$1" "$2/modules"`, os.Getenv("COLOCTL_KERNEL"), os.Getenv("COLOCTL_MODULES"), to))
	}
	return os.Getenv("COLOCTL_ACCEL")
}

// TestQuickStart follows docs/quick-start.md on three machines. Besides its blocks it does by hand what the guide says in words: it lays the network, and cuts the power of n2.
func TestQuickStart(t *testing.T) {
	h := &hosts{t: t, system: system(t), m: map[string]*machine.Machine{}}
	h.accel = prepare(t, h.system)
	for _, n := range []string{"n1", "n2", "w1"} {
		h.boot(n)
	}
	h.network()
	bootID := ""
	id := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}`)
	for _, b := range guide(t) {
		if strings.HasPrefix(b.name, "install") { // it is how the system was made
			continue
		}
		if b.name == "lost" {
			h.await(60*time.Second, "n2", "coloctl status web")
			if err := h.m["n2"].Stop(); err != nil {
				t.Fatal(err)
			}
		}
		for _, host := range b.hosts {
			begun := time.Now()
			out := h.run(host, b.typed(h.accel))
			t.Logf("%s on %s, %.1f s:\n%s", b.name, host, time.Since(begun).Seconds(), out)
			switch b.name {
			case "dry-run":
				if !strings.Contains(out, "will  make a certificate authority") {
					t.Error("the dry run doesn't say what would be done")
				}
				h.run(host, "test ! -e /etc/coloctl/site && test ! -e /etc/coloctl/colod.yaml")
			case "setup":
				if again := h.run(host, b.typed(h.accel)); !strings.Contains(again, "nothing is left to do") || strings.Contains(again, "will ") {
					t.Errorf("given again:\n%s", again)
				}
			case "look":
				if !strings.HasPrefix(out, "web: PROTECTED") {
					t.Error("not protected")
				}
			case "ask", "lost":
				if got := id.FindString(out); got == "" || bootID != "" && got != bootID {
					t.Errorf("the guest's boot id is %q, and was %q", got, bootID)
				} else {
					bootID = got
				}
			case "alone":
				if !strings.HasPrefix(out, "web: NOT PROTECTED") {
					t.Error("it is not said to be alone")
				}
			}
		}
		if t.Failed() {
			return
		}
	}
	if out := h.run("w1", "curl -sS http://192.0.2.50/log"); strings.Count(out, "first") != 1 {
		t.Errorf("the write is in the guest's log other than once:\n%s", out)
	}
}

// typed is a block as it is typed on a machine whose accelerator is another one than the guide's.
func (b block) typed(accel string) string {
	return strings.ReplaceAll(b.text, "accel: kvm", "accel: "+accel)
}
