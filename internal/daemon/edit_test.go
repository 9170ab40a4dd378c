package daemon

import (
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
)

// TestNonsenseWhileProtected edits a protected VM's spec in ways that can't be right: each is refused with what is wrong with it, and nothing of the VM changes.
func TestNonsenseWhileProtected(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	s.run("w1")
	n1 := s.run("n1")
	s.run("n2")
	n1.log.await(t, "the peer's daemon answers")
	c := s.client("n1")
	_, err := c.Create(ctx, api.SpecText{YAML: []byte(webYAML)})
	must(t, err)
	op, err := c.Start(ctx, "web", api.Request{})
	must(t, err)
	_, err = c.Wait(ctx, op.ID, nil)
	must(t, err)
	op, err = c.Protect(ctx, "web", api.ResyncRequest{})
	must(t, err)
	_, err = c.Wait(ctx, op.ID, nil)
	must(t, err)
	before := awaitStatus(t, c, func(st colo.Status) bool { return st.Verdict.Protected })
	text, tag, err := c.Spec(ctx, "web")
	must(t, err)
	for name, edit := range map[string]struct{ from, to, want string }{
		"no YAML":            {"name: web", "name: [", "web.yaml:"},
		"an unknown field":   {"name: web", "name: web\nmemroy: 1GiB", `unknown field "memroy"`},
		"no size":            {"memory: 256MiB", "memory: plenty", `"plenty" is not a size`},
		"another name":       {"name: web", "name: other", "name"},
		"no disks":           {"vda", "VDA", "disks[0].name"},
		"while it is in use": {"memory: 256MiB", "memory: 512MiB", "not possible while protected"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(string(text), edit.from, edit.to, 1)
			if changed == string(text) {
				t.Fatalf("%q is not in\n%s", edit.from, text)
			}
			_, err := c.SetSpec(ctx, "web", api.SpecText{YAML: []byte(changed), File: "web.yaml"}, tag)
			if err == nil || !strings.Contains(err.Error(), edit.want) {
				t.Errorf("%v, want %q", err, edit.want)
			}
			t.Log(err)
		})
	}
	now, _, err := c.Spec(ctx, "web")
	must(t, err)
	after, err := c.Status(ctx, "web", false)
	must(t, err)
	if string(now) != string(text) || !after.Verdict.Protected || after.Generation != before.Generation || after.PID != before.PID {
		t.Errorf("something has changed: %+v\n%s", after.Status, now)
	}
}
