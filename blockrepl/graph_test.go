package blockrepl

import (
	"testing"

	"github.com/coloctl/coloctl/qmp"
)

// TestReaches: a half is there when only a job's filter lies between, and gone when its quorum has let go of it.
func TestReaches(t *testing.T) {
	under := func(nodes ...string) (out []qmp.BlockChild) {
		for _, n := range nodes {
			out = append(out, qmp.BlockChild{NodeName: n})
		}
		return out
	}
	for name, c := range map[string]struct {
		quorum []string
		want   bool
	}{
		"alone":              {[]string{"parent-vda"}, true},
		"while it is copied": {[]string{"filter"}, true},
		"protected":          {[]string{"parent-vda", "nbd-vda"}, true},
		"dropped":            {[]string{"nbd-vda"}, false},
		"nothing":            {nil, false},
	} {
		g := graph{
			"colo-vda": {Children: under(c.quorum...)}, "filter": {Children: under("parent-vda")}, "parent-vda": {Children: under("pfile-vda")}, "nbd-vda": {},
		}
		if got := g.reaches("colo-vda", "parent-vda"); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
