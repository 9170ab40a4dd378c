package config

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api/pki"
)

const good = `node: n1
links:
  - {name: link0, address: 10.0.0.1}
  - {name: link1, address: 10.0.1.1}
bridges: [br0]
ports: 20000-20099
peers:
  - name: n2
    api: [10.0.0.2:7789]
    links:
      - {name: link0, address: 10.0.0.2}
      - {name: link1, address: 10.0.1.2}
heartbeat: {key-file: heartbeat.key}
recovery: {hold-down: 20s}
arbiter:
  kind: witness
  witnesses: [{name: w1, address: "w1.example:7790"}]
api: {listen: ["10.0.0.1:7789"]}
tls: {identity: n1.pem, trust: ca.crt}
`

func TestGood(t *testing.T) {
	c, err := Parse([]byte(good), "/etc/coloctl/colod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Heartbeat.KeyFile != "/etc/coloctl/heartbeat.key" || c.StateFile() != "/var/lib/coloctl/state.db" || c.API.Socket != "/run/coloctl/api.sock" {
		t.Errorf("paths: %+v", c)
	}
	n := c.NodeConfig()
	if n.Recovery == nil || n.Recovery.HoldDown != 20*time.Second || n.Ports != (colo.PortRange{First: 20000, Last: 20099}) || len(n.Links) != 2 {
		t.Errorf("%+v", n)
	}
	if i := c.Peers[0].Info(); i.Name != "n2" || i.Port != 7788 || i.Links[1].Address.String() != "10.0.1.2" {
		t.Errorf("peer: %+v", i)
	}
}

// TestEveryFieldIsSet: a field that the engine gets must be one that the file can set.
func TestEveryFieldIsSet(t *testing.T) {
	c, err := Parse([]byte(good+"netns: /run/netns/x\noverlay-dir: o\nlauncher: libvirt\nqemu: {user: root}\nreplication: {encryption: off, max-link-rtt: 5ms}\n"), "f")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := map[string]string{"Store": "opened", "Records": "in the store", "Arbiter": "opened", "HeartbeatKey": "read from its file", "Log": "made from log",
		"Launcher": "for tests", "ListenPacket": "for tests", "Comparer": "this program", "Limits": "with the machine's figures, by LimitsOf", "BitmapRotation": "of the library"}
	v := reflect.ValueOf(c.NodeConfig())
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if zero := v.Field(i).IsZero(); zero != (elsewhere[name] != "") {
			t.Errorf("colo.NodeConfig.%s: set from the file: %v", name, !zero)
		}
	}
}

// TestLimits: what the file doesn't say comes from the machine.
func TestLimits(t *testing.T) {
	for _, x := range []struct {
		text   string
		memory int64
		want   colo.Limits
	}{
		{"", 64 << 30, colo.Limits{Memory: 63 << 30, VCPUs: 32}},
		{"", 2 << 30, colo.Limits{Memory: 3 << 29, VCPUs: 32}},
		{"limits: {memory: 4GiB}\n", 64 << 30, colo.Limits{Memory: 4 << 30, VCPUs: 32}},
		{"limits: {vcpus: 5}\n", 64 << 30, colo.Limits{Memory: 63 << 30, VCPUs: 5}},
		{"limits: {off: true}\n", 64 << 30, colo.Limits{}},
	} {
		c, err := Parse([]byte(good+x.text), "f")
		if err != nil {
			t.Fatal(err)
		}
		if got := c.LimitsOf(x.memory, 8); got != x.want {
			t.Errorf("%q: %+v, want %+v", x.text, got, x.want)
		}
	}
}

// TestBad: each mistake is found where it is.
func TestBad(t *testing.T) {
	for _, x := range []struct{ old, new, want string }{
		{"node: n1", "node: N1", "f:1:7: node: \"N1\" is not a name"},
		{"node: n1", "nod: n1", "f:1:1: nod"},
		{"bridges: [br0]", "bridges: [br0]\nbridges: [br1]", "f:6:1"},
		{"bridges: [br0]", "bridges: [bridge-with-a-long-name]", "f:5:11: bridges[0]"},
		{"ports: 20000-20099", "ports: 80-90", "f:6:8: ports: 80-90"},
		{"ports: 20000-20099", "ports: many", "expected a range like"},
		{"address: 10.0.1.1}", "address: 10.0.0.1}", "10.0.0.1 belongs to another link already"},
		{"address: 10.0.1.1}", "address: 0.0.0.0}", "expected the address of this host"},
		{"address: 10.0.1.1}", "address: 10.0.1.2}", "10.0.1.2 is the peer's address too"},
		{"name: n2", "name: n1", "f:8:11: peers[0].name: \"n1\" is this node's own name"},
		{"{name: link1, address: 10.0.1.2}", "{name: link2, address: 10.0.1.2}", "\"link2\" is none of this node's links"},
		{"{name: link1, address: 10.0.1.2}", "{name: link2, address: 10.0.1.2}", "the peer n2 has no end of this link"},
		{"api: [10.0.0.2:7789]", "api: [10.0.0.2]", "f:9:11: peers[0].api[0]: \"10.0.0.2\": expected host:port"},
		{"{key-file: heartbeat.key}", "{key-file: k, timeout: 250ms}", "at least three intervals"},
		{"{key-file: heartbeat.key}", "{key-file: k, timeout: soon}", "is not a duration"},
		{"{key-file: heartbeat.key}", "{}", "key-file: missing"},
		{"kind: witness", "kind: none", "witnesses: belongs to the kind witness, not to none"},
		{"kind: witness", "kind: etcd", "etcd: missing"},
		{"kind: witness\n  witnesses: [{name: w1, address: \"w1.example:7790\"}]", "kind: fence\n  fence: {devices: [{agent: f, action: cycle}]}", "expected off or reboot"},
		{"kind: witness\n  witnesses: [{name: w1, address: \"w1.example:7790\"}]", "kind: fence\n  fence: {devices: [{options: {action: off}}]}", "devices[0].options.action: is chosen"},
		{"kind: witness\n  witnesses: [{name: w1, address: \"w1.example:7790\"}]", "kind: fence\n  fence: {}", "devices: missing"},
		{"kind: witness", "kind: quorum", "expected one of none, witness, etcd, fence"},
		{`"w1.example:7790"`, `"w1.example"`, "expected host:port"},
		{`api: {listen: ["10.0.0.1:7789"]}`, "", "the peer has to reach this daemon"},
		{`api: {listen: ["10.0.0.1:7789"]}`, `api: {listen: ["here:7789"]}`, "expected address:port"},
		{"tls: {identity: n1.pem, trust: ca.crt}", "", "identity: missing"},
		{"recovery: {hold-down: 20s}", "recovery: {hold-down: -1s}", "expected 0s to 24h"},
		{"recovery: {hold-down: 20s}", "replication: {max-link-rtt: 1us}", "expected 100us to 10s"},
		{"recovery: {hold-down: 20s}", "verify: {every: 1m}", "expected at least 1h"},
		{"recovery: {hold-down: 20s}", "verify: {limit: 1KiB}", "expected at least 1MiB"},
		{"recovery: {hold-down: 20s}", "limits: {off: true, vcpus: 4}", "above 0, or off"},
		{"recovery: {hold-down: 20s}", "resync: {parallel: -1}", "expected 1 or more"},
		{"recovery: {hold-down: 20s}", "log: {level: loud}", "expected debug, info, warn or error"},
		{"node: n1", "", "node"},
	} {
		text := strings.Replace(good, x.old, x.new, 1)
		if text == good {
			t.Fatalf("%q is not in the text", x.old)
		}
		_, err := Parse([]byte(text), "f")
		if err == nil || !strings.Contains(err.Error(), x.want) || !errors.As(err, new(*colo.InvalidSpecError)) {
			t.Errorf("%q → %q: want %q, got %v", x.old, x.new, x.want, err)
		}
	}
	for _, text := range []string{"", "---\n---\n", "[]", "node: [", "a: &a [*a]"} {
		if _, err := Parse([]byte(text), "f"); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// TestSecrets: a file with a device's password may be read by its owner only.
func TestSecrets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f.yaml")
	text := strings.Replace(good, "kind: witness\n  witnesses: [{name: w1, address: \"w1.example:7790\"}]", "kind: fence\n  fence: {devices: [{agent: fence_x, options: {password: x}}]}", 1)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(file); err != nil || c.Arbiter.Fence.Devices[0].Options["password"] != "x" {
		t.Errorf("%v", err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("%v", err)
	}
}

func TestReadKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(text string, mode os.FileMode) {
		t.Helper()
		_ = os.Remove(file)
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	key := strings.Repeat("ab", 32)
	write(key+"\n", 0o600)
	if got, err := ReadKey(file); err != nil || hex.EncodeToString(got) != key {
		t.Errorf("%x, %v", got, err)
	}
	if err := WriteKey(file); !errors.Is(err, os.ErrExist) {
		t.Errorf("a key was written over another one: %v", err)
	}
	_ = os.Remove(file)
	if err := WriteKey(file); err != nil {
		t.Fatal(err)
	}
	if made, err := ReadKey(file); err != nil || hex.EncodeToString(made) == key {
		t.Errorf("a new key: %x, %v", made, err)
	}
	write(key, 0o644)
	if _, err := ReadKey(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("open to all: %v", err)
	}
	for _, text := range []string{"", "ab", key + "ab", strings.Repeat("zz", 32)} {
		write(text, 0o600)
		if _, err := ReadKey(file); err == nil || !strings.Contains(err.Error(), "32 bytes in hexadecimal") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestInspect: what the host lacks is named with its remedy; what it has is fine.
func TestInspect(t *testing.T) {
	dir := t.TempDir()
	if err := pki.InitCA(filepath.Join(dir, "ca"), pki.AuthorityOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"n1", "n2"} {
		if _, err := pki.Issue(filepath.Join(dir, "ca"), pki.IssueOptions{Identity: pki.Identity{Role: pki.Node, Name: name}, Out: dir}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "heartbeat.key"), []byte(strings.Repeat("00", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	text := good + "state-dir: .\nstorage-dir: .\nqemu: {command: [/bin/true], img: [/bin/true], accel: tcg}\n"
	text = strings.NewReplacer("10.0.0.1}", "127.0.0.1}", "10.0.1.1}", "192.0.2.77}", "[br0]", "[lo, nobridge0]").Replace(text)
	inspect := func(text string) map[string]Finding {
		c, err := Parse([]byte(text), filepath.Join(dir, "colod.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]Finding{}
		for _, f := range c.Inspect() {
			out[f.Rule] = f
		}
		return out
	}
	got := inspect(text)
	for _, rule := range []string{"state folder", "storage folder", "qemu", "qemu-img", "heartbeat key", "certificate", "socket group", "link link0"} {
		if f := got[rule]; !f.OK {
			t.Errorf("%s: %+v", rule, f)
		}
	}
	for rule, want := range map[string]string{"link link1": "no interface has the address 192.0.2.77", "bridge lo": "not a bridge", "bridge nobridge0": "there is no interface"} {
		if f := got[rule]; f.OK || !strings.Contains(f.Text, want) || f.Remedy == "" {
			t.Errorf("%s: %+v", rule, f)
		}
	}
	got = inspect(strings.NewReplacer("n1.pem", "n2.pem", "/bin/true", "/no/such", "key-file: heartbeat.key", "key-file: nokey").Replace(text))
	for rule, want := range map[string]string{"certificate": "is the certificate of node n2, and this is node n1", "qemu": "no such file", "heartbeat key": "no such file"} {
		if f := got[rule]; f.OK || !strings.Contains(f.Text, want) || f.Remedy == "" {
			t.Errorf("%s: %+v", rule, f)
		}
	}
}

// FuzzParse: no input makes the reading panic, and what is taken is taken again when it is written.
func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add("node: n1\nlinks: [{name: a, address: ::1}]\narbiter: {kind: fence, fence: {devices: [{agent: x, options: {action: off}}]}}\ntls: {}\nheartbeat: {}\n")
	f.Add("a: &a\n  b: *a\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse([]byte(text), "f")
		if err == nil && c.Validate() != nil {
			t.Errorf("taken, but not valid: %v", c.Validate())
		}
	})
}

// TestSeveralPeers: more than two nodes need an arbiter that is none of them. Not every peer has an end of every link.
func TestSeveralPeers(t *testing.T) {
	third := "  - name: n3\n    api: [10.0.0.3:7789]\n    links: [{name: link0, address: 192.168.9.3}]\n"
	at := strings.Index(good, "peers:\n") + len("peers:\n")
	text := good[:at] + third + good[at:]
	c, err := Parse([]byte(text), "f")
	if err != nil || len(c.Peers) != 2 {
		t.Fatalf("%+v, %v", c, err)
	}
	for name, x := range map[string]struct{ old, new, want string }{
		"proof can't decide between three": {text[strings.Index(text, "arbiter:"):strings.Index(text, "api: {listen")], "", "peers[1]: more than two nodes need an arbiter"},
		"twice":                            {"name: n3", "name: n2", "peers[1].name: n2 is named twice"},
		"an address of another's":          {"192.168.9.3", "10.0.0.1", "10.0.0.1"},
	} {
		if _, err := Parse([]byte(strings.Replace(text, x.old, x.new, 1)), "f"); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
