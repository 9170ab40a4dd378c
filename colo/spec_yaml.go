package colo

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// ParseSpec reads one VM's spec in YAML, fills in defaults and checks it. Unknown and repeated fields are errors. file is used in messages
// only. Errors name file, line, column and field; each is an [*InvalidSpecError], joined when there are several.
func ParseSpec(data []byte, file string) (*Spec, error) {
	s := &Spec{}
	check := func() error {
		if err := noTimeAtAll(data); err != nil {
			return errors.Join(err, s.Validate())
		}
		return s.Validate()
	}
	if err := ReadYAML(data, file, "spec", s, check); err != nil {
		return nil, err
	}
	return s, nil
}

// noTimeAtAll refuses times of 0 that are written in a spec: once it is decoded they are the same as none, in whose place the profile's are taken.
func noTimeAtAll(data []byte) error {
	var given struct {
		Protection struct {
			Delay   *Duration `yaml:"checkpoint-delay"`
			Timeout *Duration `yaml:"compare-timeout"`
			Scan    *Duration `yaml:"expired-scan-cycle"`
		} `yaml:"protection"`
	}
	if err := yaml.Unmarshal(data, &given); err != nil {
		return err
	}
	p, errs := given.Protection, []error(nil)
	for _, f := range []struct {
		name  string
		given *Duration
	}{{"checkpoint-delay", p.Delay}, {"compare-timeout", p.Timeout}, {"expired-scan-cycle", p.Scan}} {
		if f.given != nil && *f.given == 0 {
			errs = append(errs, &InvalidSpecError{Field: "$.protection." + f.name, Msg: "0s: expected 1ms to 5m; leave it out for what the profile has"})
		}
	}
	return errors.Join(errs...)
}

// ReadYAML reads one YAML document into out as strictly as [ParseSpec] does, and then checks it. what is the document's name in messages. Errors of check that are
// an [*InvalidSpecError], or several joined, get the place of their Field, a path like $.disks[0].size.
func ReadYAML(data []byte, file, what string, out any, check func() error) error {
	tree, err := parser.ParseBytes(data, 0)
	if err != nil {
		return yamlError(err, file, what)
	}
	if len(tree.Docs) != 1 || tree.Docs[0].Body == nil {
		return &InvalidSpecError{File: file, Field: what, Msg: fmt.Sprintf("expected one YAML document, found %d", nonEmpty(tree))}
	}
	fit := yamlFit{file: file, what: what}
	if fit.look(tree.Docs[0].Body, reflect.TypeOf(out), "$"); len(fit.errs) > 0 {
		return errors.Join(fit.errs...)
	}
	if err := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict()).Decode(out); err != nil {
		return yamlError(err, file, what)
	}
	err = check()
	locate(err, tree, file)
	return err
}

// MarshalSpec writes a spec as ParseSpec reads it.
func MarshalSpec(s *Spec) ([]byte, error) { return yaml.Marshal(s) }

func nonEmpty(tree *ast.File) int {
	n := 0
	for _, d := range tree.Docs {
		if d.Body != nil {
			n++
		}
	}
	return n
}

// LocateSpec gives errors about fields of a spec, as those of [Node.Create], their place in the text that it was read from. It changes them.
func LocateSpec(err error, data []byte, file string) {
	if tree, perr := parser.ParseBytes(data, 0); perr == nil {
		locate(err, tree, file)
	}
}

// locate gives each InvalidSpecError in an error the position of its field, or of the nearest enclosing one that is there.
func locate(err error, tree *ast.File, file string) {
	switch e := err.(type) { //nolint:errorlint // it is taken apart, not searched
	case *InvalidSpecError:
		e.File = file
		for path := e.Field; path != ""; path = parentPath(path) {
			p, perr := yaml.PathString(path)
			if perr != nil {
				continue
			}
			if node, ferr := p.FilterFile(tree); ferr == nil && node != nil {
				e.Line, e.Col = node.GetToken().Position.Line, node.GetToken().Position.Column
				return
			}
		}
	case interface{ Unwrap() []error }:
		for _, each := range e.Unwrap() {
			locate(each, tree, file)
		}
	case interface{ Unwrap() error }:
		locate(e.Unwrap(), tree, file)
	}
}

// parentPath cuts the last part of $.a[0].b; the parent of $ is "".
func parentPath(path string) string {
	if path == "$" {
		return ""
	}
	return path[:strings.LastIndexAny(path, ".[")]
}
