package colo

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// ParseSpec reads one VM's spec in YAML, fills in defaults and checks it. Unknown and repeated fields are errors. file is used in messages
// only. Errors name file, line, column and field; each is an [*InvalidSpecError], joined when there are several.
func ParseSpec(data []byte, file string) (*Spec, error) {
	s := &Spec{}
	if err := ReadYAML(data, file, "spec", s, s.Validate); err != nil {
		return nil, err
	}
	return s, nil
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
	if err := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict()).Decode(out); err != nil {
		return yamlError(err, file, what)
	}
	if err := check(); err != nil {
		return locate(err, tree, file)
	}
	return nil
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

// yamlError turns the library's error, which carries the token it stumbled over, into ours.
func yamlError(err error, file, what string) error {
	var inv *InvalidSpecError
	if errors.As(err, &inv) {
		inv.File = file
		return inv
	}
	out := &InvalidSpecError{File: file, Field: what, Msg: err.Error()}
	var y yaml.Error
	if errors.As(err, &y) {
		out.Msg = y.GetMessage()
		if t := y.GetToken(); t != nil && t.Position != nil {
			out.Line, out.Col = t.Position.Line, t.Position.Column
			if f := strings.Trim(t.Value, `"'`); f != "" {
				out.Field = f
			}
		}
	}
	return out
}

// locate gives each InvalidSpecError the position of its field, or of the nearest enclosing one that is there.
func locate(err error, tree *ast.File, file string) error {
	var each []error
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		each = j.Unwrap()
	} else {
		each = []error{err}
	}
	for _, e := range each {
		var inv *InvalidSpecError
		if !errors.As(e, &inv) {
			continue
		}
		inv.File = file
		for path := inv.Field; path != ""; path = parentPath(path) {
			p, perr := yaml.PathString(path)
			if perr != nil {
				continue
			}
			if node, ferr := p.FilterFile(tree); ferr == nil && node != nil {
				inv.Line, inv.Col = node.GetToken().Position.Line, node.GetToken().Position.Column
				break
			}
		}
	}
	return errors.Join(each...)
}

// parentPath cuts the last part of $.a[0].b; the parent of $ is "".
func parentPath(path string) string {
	if path == "$" {
		return ""
	}
	return path[:strings.LastIndexAny(path, ".[")]
}
