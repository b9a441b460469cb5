import { Component, h, type ComponentType, type JSX } from 'preact';

/** A component that is drawn again only when `same` says that its properties mean something else than before. */
export function memo<P extends object>(inner: (props: P) => JSX.Element, same: (before: P, after: P) => boolean): ComponentType<P> {
  // A component between, so that the inner one's own signals and hooks still draw it again.
  return class extends Component<P> {
    override shouldComponentUpdate(next: Readonly<P>): boolean {
      return !same(this.props, next);
    }

    override render(): JSX.Element {
      return h(inner as ComponentType<P>, this.props);
    }
  };
}
