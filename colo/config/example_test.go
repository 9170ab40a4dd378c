package config_test

import (
	"path/filepath"
	"testing"

	"github.com/coloctl/coloctl/colo/config"
)

// TestExamples: the files that people begin with are right, and those of the two nodes fit each other.
func TestExamples(t *testing.T) {
	dir := filepath.Join("..", "..", "examples", "daemon")
	n1, err := config.Load(filepath.Join(dir, "n1.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	n2, err := config.Load(filepath.Join(dir, "n2.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ a, b *config.Config }{{n1, n2}, {n2, n1}} {
		p := x.a.Peers[0]
		if p.Name != x.b.Node || len(p.Links) != len(x.b.Links) || len(p.API) != len(x.b.API.Listen) {
			t.Fatalf("%s describes %+v", x.a.Node, p)
		}
		for i, l := range p.Links {
			if l != x.b.Links[i] {
				t.Errorf("%s says %+v of %s's link, which is %+v", x.a.Node, l, x.b.Node, x.b.Links[i])
			}
		}
		for i, a := range p.API {
			if a != x.b.API.Listen[i] {
				t.Errorf("%s asks %s at %s, which listens on %s", x.a.Node, x.b.Node, a, x.b.API.Listen[i])
			}
		}
	}
	w, err := config.LoadWitness(filepath.Join(dir, "witness.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if a := n1.Arbiter.Witnesses[0]; a.Name != w.Name || a.Address != w.Listen[0] {
		t.Errorf("%+v and %+v", a, w)
	}
}
