package api

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coloctl/coloctl/colo"
)

// Refused requests are part of a VM's history: who asked for what, and why it was not done. Whoever asks again and again must not push the rest of
// it out, so the same is noted once in a while, and only so many of a VM's at all.
const (
	refusalWindow = time.Hour
	refusalMost   = 20 // of a VM in a window
)

// refusals remembers what was noted lately.
type refusals struct {
	mu  sync.Mutex
	vms map[string]*refusalsOf
}

type refusalsOf struct {
	begun time.Time
	seen  map[string]bool
}

// fresh says whether a refusal is to be noted. vms are those that there are: what was noted of others is forgotten.
func (f *refusals) fresh(vms []string, vm, what string, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.vms {
		if !slices.Contains(vms, name) {
			delete(f.vms, name)
		}
	}
	if !slices.Contains(vms, vm) { // a history would be made for a name that somebody has made up
		return false
	}
	of := f.vms[vm]
	if of == nil || now.Sub(of.begun) >= refusalWindow {
		of = &refusalsOf{begun: now, seen: map[string]bool{}}
		if f.vms == nil {
			f.vms = map[string]*refusalsOf{}
		}
		f.vms[vm] = of
	}
	if of.seen[what] || len(of.seen) >= refusalMost {
		return false
	}
	of.seen[what] = true
	return true
}

// refuse puts a request that was refused into the VM's history. What was merely asked for in a dry run, or could not be understood, is not there; nor is what has
// failed on its way, of which the VM's states tell.
func (s *Server) refuse(r *request, what string, err error) {
	if err == nil || r.params["dry_run"] == "true" || r.caller.Name == "" || errors.As(err, new(*colo.StepError)) {
		return
	}
	body, _ := describe(err, "", "")
	if body.Exit != ExitRefused && body.Exit != ExitNotRunning && body.Exit != ExitNoArbiter {
		return
	}
	by := r.caller.String()
	if !s.refusals.fresh(s.opts.Node.VMs(), r.vm, strings.Join([]string{what, by, string(body.Code)}, "\x00"), time.Now()) {
		return
	}
	s.opts.Node.Remark(r.vm, "refused", what+" asked for by "+by+" was refused: "+err.Error())
}
