package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/netcompare"
)

// cross takes an error over the wire.
func cross(t testing.TB, err error) *Error {
	t.Helper()
	body, status := describe(err, "n1", "web")
	data, jerr := json.Marshal(body)
	must(t, jerr)
	out := &Error{Status: status}
	must(t, json.Unmarshal(data, &out.Body))
	return out
}

// TestErrorsKeepTheirIdentity takes each sentinel across, alone and wrapped with another one.
func TestErrorsKeepTheirIdentity(t *testing.T) {
	seen := map[Code]bool{}
	for _, k := range sentinels {
		if seen[k.code] || k.exit < 1 || k.status < 400 {
			t.Errorf("%s: used twice, or without exit code or status", k.code)
		}
		seen[k.code] = true
		got := cross(t, fmt.Errorf("web on n1: %w", k.err))
		if !errors.Is(got, k.err) || got.Body.Code != k.code || got.Status != k.status || got.Body.Engine == k.api || got.Error() != "web on n1: "+k.err.Error() {
			t.Errorf("%s became %+v", k.code, got)
		}
		for _, other := range sentinels {
			if errors.Is(got, other.err) && !errors.Is(k.err, other.err) {
				t.Errorf("%s became %s too", k.code, other.code)
			}
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		some := rapid.SliceOfNDistinct(rapid.IntRange(0, len(sentinels)-1), 1, 4, rapid.ID).Draw(rt, "errors")
		var errs []error
		for _, i := range some {
			errs = append(errs, sentinels[i].err)
		}
		got := cross(t, fmt.Errorf("two hops: %w", cross(t, errors.Join(errs...))))
		for i, k := range sentinels {
			want := false
			for _, j := range some {
				want = want || i == j
			}
			if errors.Is(got, k.err) != want {
				rt.Errorf("%v after two hops: %s %v", errs, k.code, !want)
			}
		}
	})
}

func TestTypedErrorsAreRebuilt(t *testing.T) {
	refused := &colo.UnexpectedEventError{VM: "web", State: colo.Solo, Event: colo.ReqSwitchover}
	var gotRefused *colo.UnexpectedEventError
	if e := cross(t, refused); !errors.As(e, &gotRefused) || *gotRefused != *refused || e.Body.Exit != ExitNotRunning {
		t.Errorf("%+v", e)
	}
	differs := &colo.PeerMismatchError{What: "the version of QEMU", Here: "11.1.3", There: "10.0.0"}
	var gotDiffers *colo.PeerMismatchError
	if e := cross(t, fmt.Errorf("protect: %w", differs)); !errors.As(e, &gotDiffers) || *gotDiffers != *differs {
		t.Errorf("%+v", e)
	}
	_, err := colo.ParseSpec([]byte("name: web\nmemory: 1MiB\ndisks: []\nboot: {initrd: x}\n"), "web.yaml")
	e := cross(t, err)
	var inv *colo.InvalidSpecError
	if !errors.As(e, &inv) || inv.File != "web.yaml" || len(e.Body.Fields) != 2 || e.Body.Exit != ExitUsage {
		t.Errorf("%+v", e.Body)
	}
	step := &colo.StepError{Plan: "start", Step: "claim the VM", Err: fmt.Errorf("generation 3: %w", arbiter.ErrUnreachable)}
	if e := cross(t, step); !errors.Is(e, arbiter.ErrUnreachable) || e.Body.Exit != ExitNoArbiter {
		t.Errorf("%+v", e)
	}
	if e := cross(t, errors.New("QEMU said no")); e.Body.Code != codeFailed || e.Status != 500 || !e.Body.Engine {
		t.Errorf("%+v", e)
	}
}

// TestAllSentinelsCross reads the sources: an error that a caller can decide on must keep its identity on the wire.
func TestAllSentinelsCross(t *testing.T) {
	known := map[string]bool{}
	src, err := os.ReadFile("errors.go")
	must(t, err)
	for _, line := range strings.Split(string(src), "\n") {
		if _, rest, ok := strings.Cut(strings.TrimSpace(line), `", colo.`); ok {
			name, _, _ := strings.Cut(rest, ",")
			known["colo."+name] = true
		}
		if _, rest, ok := strings.Cut(strings.TrimSpace(line), `", arbiter.`); ok {
			name, _, _ := strings.Cut(rest, ",")
			known["arbiter."+name] = true
		}
	}
	if len(known) < 10 {
		t.Fatalf("the table was not read: %v", known)
	}
	for pkg, dir := range map[string]string{"colo": "..", "arbiter": "../arbiter"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		must(t, err)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			must(t, err)
			for _, d := range f.Decls {
				g, ok := d.(*ast.GenDecl)
				if !ok || g.Tok != token.VAR {
					continue
				}
				for _, sp := range g.Specs {
					for _, n := range sp.(*ast.ValueSpec).Names {
						if strings.HasPrefix(n.Name, "Err") && !known[pkg+"."+n.Name] {
							t.Errorf("%s.%s is in no row of sentinels", pkg, n.Name)
						}
					}
				}
			}
		}
	}
}

// TestExitCodesOfLikeCases: what is alike to a person has the same exit code.
func TestExitCodesOfLikeCases(t *testing.T) {
	refused := func(s colo.State, e colo.EventKind) error {
		return &colo.UnexpectedEventError{VM: "web", State: s, Event: e}
	}
	for what, like := range map[string]struct {
		exit int
		errs []error
	}{
		"not running, or not protected": {ExitNotRunning, []error{refused(colo.Stopped, colo.ReqProtect), refused(colo.Stopped, colo.ReqSwitchover),
			refused(colo.Outdated, colo.ReqUnprotect), refused(colo.Solo, colo.ReqSwitchover), colo.ErrNotProtected}},
		"possible, but not now":            {ExitRefused, []error{refused(colo.Protected, colo.ReqEdit), refused(colo.Solo, "delete"), colo.ErrNotWhileRunning, colo.ErrBackupRuns}},
		"something is missing on the node": {ExitRefused, []error{colo.ErrNoFile, colo.ErrImageMissing, blockrepl.ErrMediumMissing, netcompare.ErrNoBridge}},
		"there already, or another VM's":   {ExitRefused, []error{colo.ErrVMExists, blockrepl.ErrExists, colo.ErrMACTaken, colo.ErrImageTaken, fs.ErrExist}},
		"typed wrongly":                    {ExitUsage, []error{&colo.InvalidSpecError{Field: "$.machine", Msg: "x"}, ErrBadRequest, blockrepl.ErrInvalidDisk}},
		"a name that is not there":         {ExitError, []error{colo.ErrNoVM, ErrNoOperation}},
		"no arbiter":                       {ExitNoArbiter, []error{colo.ErrNoArbiter, arbiter.ErrUnreachable, arbiter.ErrNoRecord}},
	} {
		for _, err := range like.errs {
			if got := cross(t, fmt.Errorf("web on n1: %w", err)).Body.Exit; got != like.exit {
				t.Errorf("%s: %v: exit code %d, want %d", what, err, got, like.exit)
			}
		}
	}
}
