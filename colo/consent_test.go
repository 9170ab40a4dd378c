package colo_test

import (
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
)

// TestConsent: a node agrees to be left out only while its copy is silent and can't begin to speak.
func TestConsent(t *testing.T) {
	p := newBare(t)
	ctx := t.Context()
	p.protect(colo.ProtectionSpec{})
	vm, err := p.stores["n1"].Get("web")
	must(t, err)
	without := func(node, vm, why string, agrees bool) {
		t.Helper()
		other := map[string]string{"n1": "n2", "n2": "n1"}[node]
		rec := arbiter.Record{VM: vm, Generation: 9, Members: []string{other}}
		if err := p.nodes[node].Consent(ctx, rec); (err == nil) != agrees {
			t.Errorf("%s, %s: %v", node, why, err)
		}
		rec.Members = []string{node, other}
		if err := p.nodes[node].Consent(ctx, rec); err != nil {
			t.Errorf("%s, %s, to be one of both: %v", node, why, err)
		}
	}
	without("n1", "another VM's id", "which it does not know", true)
	without("n1", vm.ID, "the primary, protected", false)
	without("n2", vm.ID, "the secondary", true)
	must(t, p.nodes["n1"].Unprotect(ctx, "web"))
	without("n1", vm.ID, "runs alone", false)
	without("n2", vm.ID, "outdated", true)
	must(t, p.nodes["n1"].Stop(ctx, "web", colo.StopOptions{}))
	without("n1", vm.ID, "stopped", true)
}
