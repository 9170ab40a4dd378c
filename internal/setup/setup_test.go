package setup

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/config"
)

const siteYAML = `nodes:
  - {name: n1, host: 192.0.2.11, links: [10.99.0.1, 10.99.1.1]}
  - {name: n2, host: 192.0.2.12, links: [10.99.0.2, 10.99.1.2], ssh: root@192.0.2.12}
witness: {name: w1, address: "192.0.2.20:7790"}
bridges: [br0]
`

func site(t *testing.T, text string) *Site {
	t.Helper()
	s, err := ParseSite([]byte(text), "site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSiteRefusals(t *testing.T) {
	for _, x := range []struct{ name, old, new, want string }{
		{"unknown field", "bridges:", "bridgse:", `unknown field "bridgse"`},
		{"one node", "  - {name: n2, host: 192.0.2.12, links: [10.99.0.2, 10.99.1.2], ssh: root@192.0.2.12}\n", "", "expected two"},
		{"the same name", "name: n2", "name: n1", `site.yaml:3:12: nodes[1].name: "n1" is used twice`},
		{"the witness's name", "name: w1", "name: n1", `"n1" is used twice`},
		{"a missing end of a link", ", 10.99.1.2", "", "each link has an end on both nodes"},
		{"the same address", "10.99.0.2", "10.99.0.1", "is used twice"},
		{"no address", "10.99.0.2", "here", "expected an IP address"},
		{"no arbiter unsaid", "witness: {name: w1, address: \"192.0.2.20:7790\"}\n", "", "say arbiter: none"},
		{"witness on a node", "192.0.2.20:7790", "192.0.2.12:7790", "it would die with the node"},
		{"witness on a link", "192.0.2.20:7790", "10.99.1.1:7790", "it would die with the node"},
		{"witness without a port", "192.0.2.20:7790", "192.0.2.20", "expected host:port"},
		{"two arbiters", "bridges:", "arbiter: none\nbridges:", "leave this out"},
		{"a host's address", "host: 192.0.2.12", "host: \"n2 host!\"", `site.yaml:3:22: nodes[1].host: "n2 host!": expected an IP address or the name of a host`},
		{"a word for a port", "bridges:", "api-port: many\nbridges:", `api-port: "many": expected a whole number`},
		{"accelerator", "bridges:", "accel: fast\nbridges:", "expected kvm or tcg"},
	} {
		text := strings.Replace(siteYAML, x.old, x.new, 1)
		_, err := ParseSite([]byte(text), "site.yaml")
		if err == nil || !strings.Contains(err.Error(), x.want) || !errors.As(err, new(*colo.InvalidSpecError)) {
			t.Errorf("%s: %v, want %q", x.name, err, x.want)
		}
	}
}

// run does a plan and returns what it did.
func run(t *testing.T, p Plan) []string {
	t.Helper()
	var did []string
	if err := p.Run(t.Context(), func(what string) { did = append(did, what) }); err != nil {
		t.Fatal(err)
	}
	return did
}

// TestKeys: everything is made once; what is missing or not as the site says is made again, and nothing else.
func TestKeys(t *testing.T) {
	s := site(t, siteYAML)
	k := Keys{t.TempDir()}
	if did := run(t, k.Plan(s)); len(did) != 9 {
		t.Errorf("the first time: %q", did)
	}
	if did := run(t, k.Plan(s)); len(did) != 0 {
		t.Errorf("the second time: %q", did)
	}
	for _, f := range []string{"ca.pem", "n1.pem", KeyFile, "n1.tar", "w1.tar"} {
		st, err := os.Stat(filepath.Join(k.Dir, f))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
	if err := os.Remove(k.Identity("n2")); err != nil {
		t.Fatal(err)
	}
	if did := run(t, k.Plan(s)); len(did) != 2 || !strings.Contains(did[0], "node n2") || !strings.Contains(did[1], "bundle of n2") {
		t.Errorf("after a loss: %q", did)
	}
	changed := site(t, strings.Replace(siteYAML, "10.99.1.2", "10.99.1.22", 1))
	if did := run(t, k.Plan(changed)); len(did) != 2 {
		t.Errorf("after a change of an address of n2, which is in both nodes' bundles: %q", did)
	}
}

// TestBundle: what was written is read, is a configuration that the daemon takes, and nothing else passes for a bundle.
func TestBundle(t *testing.T) {
	s := site(t, siteYAML)
	k := Keys{t.TempDir()}
	run(t, k.Plan(s))
	data, err := os.ReadFile(k.BundleFile("n2"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := ReadBundle(bytes.NewReader(data))
	if err != nil || b.Machine != "n2" || b.Witness {
		t.Fatalf("%+v, %v", b, err)
	}
	c, err := config.Parse(b.Files[NodeFile], NodeFile)
	if err != nil {
		t.Fatal(err)
	}
	if c.Peers[0].Name != "n1" || c.Links[1].Address != "10.99.1.2" || c.Arbiter.Witnesses[0].Address != "192.0.2.20:7790" || c.API.Listen[2] != "192.0.2.12:7789" {
		t.Errorf("%+v", c)
	}
	if _, err := ReadBundle(bytes.NewReader(data[:len(data)/2])); !errors.Is(err, ErrBundle) {
		t.Errorf("half a bundle: %v", err)
	}
	for name, h := range map[string]tar.Header{
		"a path":     {Name: "../../etc/passwd"},
		"a link":     {Name: NodeFile, Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"},
		"other file": {Name: "run.sh"},
		"empty name": {Name: ".pem"},
	} {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		_ = w.WriteHeader(&h)
		_ = w.Close()
		if _, err := ReadBundle(&out); !errors.Is(err, ErrBundle) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestJoin: a host takes a bundle over once, keeps what it replaces, and is no other machine afterwards.
func TestJoin(t *testing.T) {
	s := site(t, siteYAML)
	k := Keys{t.TempDir()}
	run(t, k.Plan(s))
	b, err := k.Bundle(s, "w1")
	if err != nil {
		t.Fatal(err)
	}
	bad := config.Finding{Rule: "listen", Text: "no interface has the address"}
	h := Host{Etc: filepath.Join(t.TempDir(), "etc"), Examine: func(_ context.Context, c *config.Config, w *config.WitnessConfig) []config.Finding {
		if c != nil || w.Name != "w1" {
			t.Errorf("examined as %v, %v", c, w)
		}
		if _, err := w.Credentials(); err != nil {
			t.Error(err)
		}
		return []config.Finding{bad, {Rule: "state folder"}}
	}}
	found, err := h.Examined(t.Context(), b)
	if err != nil || len(found) != 1 || found[0] != bad {
		t.Errorf("%v, %v", found, err)
	}
	if exists(h.Etc) {
		t.Error("the examination changed the host")
	}
	join := h.Join(b)
	join = join[:3] // the rest is outside of the configuration's folder
	if did := run(t, join); len(did) != 3 || !strings.HasSuffix(did[2], WitnessFile) {
		t.Errorf("%q", did)
	}
	if did := run(t, h.Join(b)[:3]); len(did) != 0 {
		t.Errorf("again: %q", did)
	}
	if err := h.Refuse(b); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(h.Etc, WitnessFile), append(b.Files[WitnessFile], '#', '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	if did := run(t, h.Join(b)[:3]); len(did) != 1 || !exists(filepath.Join(h.Etc, WitnessFile+".old")) {
		t.Errorf("after a change by hand: %q", did)
	}
	other := site(t, strings.Replace(siteYAML, "name: w1", "name: w9", 1))
	run(t, k.Plan(other))
	nine, err := k.Bundle(other, "w9")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Refuse(nine); !errors.Is(err, ErrOther) {
		t.Errorf("another machine: %v", err)
	}
}

// TestPlanStops: a step that fails is the last, and a second run begins with it.
func TestPlanStops(t *testing.T) {
	broken, done := true, map[string]bool{}
	step := func(n string) Step {
		return Step{n, func() bool { return done[n] }, func(context.Context) error {
			if n == "b" && broken {
				return os.ErrPermission
			}
			done[n] = true
			return nil
		}}
	}
	p := Plan{step("a"), step("b"), step("c")}
	if err := p.Run(t.Context(), func(string) {}); !errors.Is(err, os.ErrPermission) || !strings.HasPrefix(err.Error(), "b: ") || done["c"] {
		t.Errorf("%v, %v", err, done)
	}
	broken = false
	if did := run(t, p); strings.Join(did, "") != "bc" {
		t.Errorf("%q", did)
	}
}

// TestFirstVM: a spec that is not there is told with the place where it is named.
func TestFirstVM(t *testing.T) {
	file := filepath.Join(t.TempDir(), "site.yaml")
	if err := os.WriteFile(file, []byte("vm: web.yaml\n"+siteYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSite(file); err == nil || !strings.Contains(err.Error(), file+":1:5: vm: stat ") {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(file), "web.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := LoadSite(file); err != nil || s.VM != filepath.Join(filepath.Dir(file), "web.yaml") {
		t.Errorf("%+v, %v", s, err)
	}
}
