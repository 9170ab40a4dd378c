package colo

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// yamlFit looks at a document before it is decoded, and reports everything in it that can't be what the target's type has there, in words of the document. The
// decoder stops at the first, and speaks of Go's types. What it doesn't know, such as aliases, it leaves to the decoder.
type yamlFit struct {
	file, what string
	errs       []error
}

func (f *yamlFit) bad(node ast.Node, path, format string, args ...any) {
	if path == "$" {
		path = f.what
	}
	e := &InvalidSpecError{File: f.file, Field: path, Msg: fmt.Sprintf(format, args...)}
	if t := node.GetToken(); t != nil && t.Position != nil {
		e.Line, e.Col = t.Position.Line, t.Position.Column
	}
	f.errs = append(f.errs, e)
}

func (f *yamlFit) look(node ast.Node, t reflect.Type, path string) {
	switch n := node.(type) {
	case nil, *ast.NullNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		return
	case *ast.AnchorNode:
		f.look(n.Value, t, path)
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if u, ok := reflect.New(t).Interface().(yaml.NodeUnmarshaler); ok {
		f.unmarshal(node, u, path)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		if t.PkgPath() != "time" {
			f.fields(node, t, path)
		}
	case reflect.Slice:
		list, ok := node.(*ast.SequenceNode)
		if !ok {
			f.bad(node, path, "expected a list, got %s", nodeText(node))
			return
		}
		for i, v := range list.Values {
			f.look(v, t.Elem(), fmt.Sprintf("%s[%d]", path, i))
		}
	case reflect.Map:
		pairs, ok := mappingOf(node)
		if !ok {
			f.bad(node, path, "expected names with values, got %s", nodeText(node))
			return
		}
		for _, p := range pairs {
			f.look(p.Value, t.Elem(), path+"."+p.Key.GetToken().Value)
		}
	default:
		f.scalar(node, t, path)
	}
}

// unmarshal asks a type that reads its own text.
func (f *yamlFit) unmarshal(node ast.Node, u yaml.NodeUnmarshaler, path string) {
	if _, ok := node.(ast.ScalarNode); !ok {
		f.bad(node, path, "expected one value, got %s", nodeText(node))
		return
	}
	err := u.UnmarshalYAML(node)
	var inv *InvalidSpecError
	switch {
	case errors.As(err, &inv):
		f.bad(node, path, "%s", inv.Msg)
	case err != nil:
		f.bad(node, path, "%v", err)
	}
}

func (f *yamlFit) fields(node ast.Node, t reflect.Type, path string) {
	pairs, ok := mappingOf(node)
	known := map[string]reflect.Type{}
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			known[name], names = t.Field(i).Type, append(names, name)
		}
	}
	slices.Sort(names)
	if !ok {
		f.bad(node, path, "expected fields (%s), got %s", strings.Join(names, ", "), nodeText(node))
		return
	}
	for _, p := range pairs {
		if _, merge := p.Key.(*ast.MergeKeyNode); merge {
			continue
		}
		name := p.Key.GetToken().Value
		if at, ok := known[name]; ok {
			f.look(p.Value, at, path+"."+name)
		} else {
			f.bad(p.Key, path+"."+name, "unknown field %q: expected one of %s", name, strings.Join(names, ", "))
		}
	}
}

func (f *yamlFit) scalar(node ast.Node, t reflect.Type, path string) {
	want := kindText(t.Kind())
	s, ok := node.(ast.ScalarNode)
	switch {
	case want == "":
		return
	case !ok:
		f.bad(node, path, "expected %s, got %s", want, nodeText(node))
		return
	}
	text := s.GetToken().Value
	var err error
	switch s.(type) {
	case *ast.BoolNode:
		ok = t.Kind() == reflect.Bool || t.Kind() == reflect.String
	case *ast.IntegerNode:
		ok = t.Kind() != reflect.Bool
	default:
		switch t.Kind() {
		case reflect.Bool:
			ok = false
		case reflect.Int, reflect.Int64:
			_, err = strconv.ParseInt(text, 0, 64)
		}
	}
	if !ok || err != nil {
		f.bad(node, path, "%q: expected %s", text, want)
	}
}

// kindText names what a field holds; empty for what is left to the decoder.
func kindText(k reflect.Kind) string {
	switch k {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.String:
		return "text"
	}
	return ""
}

func nodeText(node ast.Node) string {
	switch n := node.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "fields"
	case *ast.SequenceNode:
		return "a list"
	default:
		return strconv.Quote(oneLine(n.GetToken().Value))
	}
}

func mappingOf(node ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := node.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

// oneLine is the beginning of a text that may be the rest of a file.
func oneLine(text string) string {
	text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	if r := []rune(text); len(r) > 40 {
		text = string(r[:37]) + "..."
	}
	return text
}

// yamlError turns an error of the library's, which carries the token that it stumbled over, into ours. what is the document's name in messages.
func yamlError(err error, file, what string) error {
	var inv *InvalidSpecError
	if errors.As(err, &inv) {
		inv.File = file
		return inv
	}
	out := &InvalidSpecError{File: file, Field: what, Msg: err.Error()}
	var y yaml.Error
	if !errors.As(err, &y) {
		return out
	}
	out.Msg = y.GetMessage()
	text := ""
	if t := y.GetToken(); t != nil && t.Position != nil {
		out.Line, out.Col = t.Position.Line, t.Position.Column
		text = oneLine(strings.Trim(strings.TrimSpace(t.Value), `"'`))
	}
	var mismatch *yaml.TypeError
	var overflow *yaml.OverflowError
	var syntax *yaml.SyntaxError
	switch {
	case errors.As(err, &mismatch):
		out.Msg = fmt.Sprintf("%q does not fit here", text)
		if want := kindText(mismatch.DstType.Kind()); want != "" {
			out.Msg = fmt.Sprintf("%q: expected %s", text, want)
		}
	case errors.As(err, &overflow):
		out.Msg = fmt.Sprintf("%s is too large or too small", overflow.SrcNum)
	case errors.As(err, &syntax) && text != "" && !strings.Contains(out.Msg, text):
		out.Msg += fmt.Sprintf(", at %q", text)
	case text != "":
		out.Field = text
	}
	return out
}
