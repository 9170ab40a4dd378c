package both

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
)

// TestBalance: VMs go to the node that they prefer, the others are spread evenly; what is not protected stays, and so does what is right already.
func TestBalance(t *testing.T) {
	on := func(vm, preferred, primary, secondary string) Placed {
		return Placed{VM: vm, Preferred: preferred, Primary: primary, Secondary: secondary, Reason: "solo"}
	}
	for _, c := range []struct {
		name string
		vms  []Placed
		want string
	}{
		{"all on one", []Placed{on("a", "", "n1", "n2"), on("b", "", "n1", "n2"), on("c", "", "n1", "n2"), on("d", "", "n1", "n2")}, "a>n2 b>n2"},
		{"one more", []Placed{on("a", "", "n1", "n2"), on("b", "", "n1", "n2"), on("c", "", "n2", "n1")}, ""},
		{"preferred", []Placed{on("a", "n2", "n1", "n2"), on("b", "n1", "n1", "n2")}, "a>n2"},
		{"preferred elsewhere", []Placed{on("a", "n3", "n1", "n2")}, ""},
		{"preferred count", []Placed{on("a", "n1", "n1", "n2"), on("b", "n1", "n1", "n2"), on("c", "", "n1", "n2")}, "c>n2"},
		{"not protected", []Placed{on("a", "n2", "n1", ""), on("b", "", "n1", ""), on("c", "", "n1", "")}, ""},
		{"stopped", []Placed{on("a", "n2", "", ""), on("b", "", "n1", "n2")}, ""},
	} {
		var got []string
		moves := Balance(c.vms)
		for _, m := range moves {
			if m.Why == "" {
				t.Errorf("%s: %s: no reason", c.name, m.VM)
			}
			if m.To != "" {
				got = append(got, m.VM+">"+m.To)
			}
		}
		if s := strings.Join(got, " "); s != c.want || len(moves) != len(c.vms) {
			t.Errorf("%s: %q, want %q (%v)", c.name, s, c.want, moves)
		}
	}
}

func TestPlaceOf(t *testing.T) {
	for _, c := range []struct {
		halves []Half
		want   string
	}{
		{[]Half{at("a", colo.Protected), at("b", colo.Secondary)}, "a/b"},
		{[]Half{at("a", colo.Secondary), at("b", colo.Protected)}, "b/a"},
		{[]Half{at("a", colo.Solo), at("b", colo.Outdated)}, "a/"},
		{[]Half{at("a", colo.Stopped), at("b", colo.Outdated)}, "/"},
	} {
		p := PlaceOf("web", "", c.halves)
		if got := fmt.Sprintf("%s/%s", p.Primary, p.Secondary); got != c.want {
			t.Errorf("%v: %s, want %s", c.halves, got, c.want)
		}
	}
}
