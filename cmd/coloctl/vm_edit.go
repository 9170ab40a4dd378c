package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/internal/lab"
)

func vmEdit(cc *cli.Context, s *site) error {
	vm := cc.Args().First()
	t, _, err := s.Route(cc.Context, vm)
	if err != nil {
		return attempt(err, "edit", vm, t)
	}
	old, tag, err := t.Spec(cc.Context, vm)
	if err != nil {
		return attempt(err, "edit", vm, t)
	}
	var text api.SpecText
	kept := ""
	if cc.IsSet("file") {
		if text, _, err = readSpec(cc); err != nil {
			return err
		}
	} else {
		if text, err = editSpec(cc, vm, old); err != nil {
			return err
		}
		kept = text.File
		if bytes.Equal(text.YAML, old) {
			_ = os.Remove(kept)
			fmt.Fprintln(cc.App.ErrWriter, "nothing was changed")
			return nil
		}
	}
	text.Reason = cc.String("reason")
	err = applySpec(cc, t, vm, text, old, tag)
	if err != nil && kept != "" {
		return &taskError{"", fmt.Errorf("%w; what was typed is in %s", err, kept), fmt.Sprintf("correct it, then: coloctl vm edit %s -f %s", vm, kept)}
	}
	if kept != "" {
		_ = os.Remove(kept)
	}
	return err
}

func applySpec(cc *cli.Context, t *target, vm string, text api.SpecText, old []byte, tag string) error {
	spec, err := colo.ParseSpec(text.YAML, text.File)
	if err != nil {
		return err
	}
	if spec.Name != vm {
		return usagef("%s: the spec is of %s, not of %s: a VM's name stays", text.File, spec.Name, vm)
	}
	if cc.Bool("dry-run") {
		want, err := colo.MarshalSpec(spec)
		if err != nil {
			return err
		}
		if err := t.CheckSpec(cc.Context, vm, text, tag); err != nil {
			return attempt(err, "edit (dry run)", vm, t)
		}
		d := string(diff.Diff(vm+" now", old, text.File, want))
		if f := format(cc); f != lab.FormatTable {
			return lab.Encode(cc.App.Writer, f, map[string]any{"vm": vm, "node": t.String(), "diff": d})
		}
		_, err = fmt.Fprint(cc.App.Writer, d)
		return err
	}
	full, err := t.SetSpec(cc.Context, vm, text, tag)
	if err != nil {
		return attempt(err, "edit", vm, t)
	}
	if f := format(cc); f != lab.FormatTable {
		return lab.Encode(cc.App.Writer, f, full)
	}
	_, err = fmt.Fprintf(cc.App.Writer, "%s changed on %s\n", vm, full.Status.Node)
	return err
}

// editSpec lets a person change a spec in an editor, and returns it with the file that it is in.
func editSpec(cc *cli.Context, vm string, old []byte) (api.SpecText, error) {
	editor := firstSet("VISUAL", "EDITOR")
	if editor == "" {
		if !isTerminal(os.Stdin) {
			return api.SpecText{}, usagef("vm edit opens an editor, and there is no terminal: give -f FILE, or name an editor in EDITOR")
		}
		editor = "vi"
	}
	f, err := os.CreateTemp("", "coloctl-"+vm+"-*.yaml")
	if err != nil {
		return api.SpecText{}, err
	}
	_, err = f.Write(old)
	if err := errors.Join(err, f.Close()); err != nil {
		return api.SpecText{}, err
	}
	if err := runEditor(cc.Context, editor, f.Name()); err != nil {
		_ = os.Remove(f.Name())
		return api.SpecText{}, fmt.Errorf("editor %s: %w; name another one in EDITOR, or use -f", editor, err)
	}
	text, err := os.ReadFile(f.Name())
	return api.SpecText{YAML: text, File: f.Name()}, err
}

// runEditor starts an editor, whose name may have arguments of its own, on this terminal.
func runEditor(ctx context.Context, editor, file string) error {
	argv := append(strings.Fields(editor), file)
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	return c.Run()
}

func firstSet(names ...string) string {
	for _, n := range names {
		if v := os.Getenv(n); v != "" {
			return v
		}
	}
	return ""
}
